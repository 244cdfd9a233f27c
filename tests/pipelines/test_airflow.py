"""The DAGs in Airflow's own environment: structure, a day with each ending, command lines that the jobs understand."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from bootstrap.stack import ROOT
from gesr_core.errors import ConfigurationError

pytestmark = [pytest.mark.slow]

ENV = ROOT / ".venv-airflow"
HERE = ROOT / "tests/pipelines"
ORDER = ["wait_for_candidates", "wait_for_turn", "update_histories", "export_items", "score_daily", "evaluate"]
WEEK = ["train", "wait_for_daily", "update_histories", "export_items", "score_daily", "evaluate", "promote"]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What airflow_facts.py found out, in an Airflow with a data base of its own."""
    scratch = tmp_path_factory.mktemp("airflow")
    subprocess.run([sys.executable, "-m", "bootstrap.airflow", "--env", str(ENV)], cwd=ROOT, check=True)
    submit = scratch / "bin/spark-submit"
    submit.parent.mkdir()
    submit.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_submit.py"}" "$@"\n')
    submit.chmod(0o755)
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "SPARK", "PYSPARK"))
    }
    environ |= {
        "AIRFLOW_HOME": str(scratch / "home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "pipelines/airflow/dags"),
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[1]"}),
        "FAKE_SCRATCH": str(scratch),
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([str(submit.parent), str(ENV / "bin"), os.environ["PATH"]]),
    }
    for command in (["airflow", "db", "migrate"], ["python", str(HERE / "airflow_facts.py"), str(scratch)]):
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-20_000:]
    found: dict[str, Any] = json.loads((scratch / "facts.json").read_text())
    return found


def test_both_dags_are_read_and_the_projects_own_settings_too(facts: dict[str, Any]) -> None:
    assert facts["import_errors"] == {}
    assert sorted(facts["structure"]) == ["gesr_daily", "gesr_weekly"]
    # without a weekly DAG, until somebody names a challenger's model
    assert facts["own settings"] == ["gesr_daily"]
    assert len(facts["unsafe"]) == 2
    for error in facts["unsafe"].values():
        assert "would score with each challenger before it is promoted" in error


@pytest.mark.parametrize(("dag", "order"), [("gesr_daily", ORDER), ("gesr_weekly", WEEK)])
def test_tasks_run_one_after_the_other(facts: dict[str, Any], dag: str, order: list[str]) -> None:
    found = facts["structure"][dag]
    assert {name: task["before"] for name, task in found["tasks"].items()} == {
        name: order[at + 1 : at + 2] for at, name in enumerate(order)
    }
    # the logical date is the trigger's time; one run of the DAG at a time; nothing is made up for by itself
    assert (found["timetable"], found["catchup"], found["max_active_runs"]) == ("CronTriggerTimetable", False, 1)


def test_tasks_are_retried_with_growing_waits_and_jobs_time_out(facts: dict[str, Any]) -> None:
    for found in facts["structure"].values():
        for name, task in found["tasks"].items():
            assert (task["retries"], task["exponential"]) == (2, True), name
            if not name.startswith("wait"):
                assert task["timeout_s"] == (12 if name == "train" else 4) * 3600, name
    daily = facts["structure"]["gesr_daily"]["tasks"]
    assert daily["update_histories"]["at_a_time"] == 1
    assert {name: task["outlets"] for name, task in daily.items() if task["outlets"]} == {"score_daily": ["scores"]}


def test_a_day_waits_for_its_candidates_and_then_runs_each_job_on_its_ds(facts: dict[str, Any]) -> None:
    day = facts["spark_submit"]["good"]
    assert facts["spark_submit"]["waited_s"] > 6
    assert day["state"] == "success"
    common = ["--ds", "2001-02-14", "--env", "local", "--set", "scoring.top_k=7"]
    champion = ["--checkpoint", "models:/gesr@champion"]
    assert day["commands"] == [
        ["update_histories", *common],
        ["export_items", *common, *champion],
        ["score_daily", *common, *champion],
    ]
    # what was never published cannot be measured
    assert day["tasks"]["evaluate"]["state"] == "skipped"


def test_the_published_ds_whose_labels_are_known_by_now_is_evaluated(facts: dict[str, Any]) -> None:
    day = facts["spark_submit"]["evaluated"]
    assert day["commands"][-1][:3] == ["evaluate", "--ds", "2001-02-15"]
    assert day["tasks"]["evaluate"]["state"] == "success"


@pytest.mark.parametrize("runner", ["spark_submit", "spark_operator"])
def test_a_refusal_is_not_tried_again_and_nothing_runs_after_it(facts: dict[str, Any], runner: str) -> None:
    day = facts[runner]["refused"]
    assert day["state"] == "failed"
    assert day["tasks"]["score_daily"] == {"state": "failed", "tries": 1}
    assert day["tasks"]["evaluate"]["state"] == "upstream_failed"
    assert [command[0] for command in day["commands"]] == ["update_histories", "export_items", "score_daily"]


def test_a_failure_and_a_killed_process_are_tried_again(facts: dict[str, Any]) -> None:
    day = facts["spark_submit"]["retried"]
    assert day["state"] == "success"
    assert day["tasks"]["export_items"] == {"state": "success", "tries": 3}
    given_up = facts["spark_submit"]["given up"]
    assert given_up["tasks"]["export_items"] == {"state": "failed", "tries": 3}
    assert given_up["tasks"]["score_daily"]["state"] == "upstream_failed"


def test_a_job_that_hangs_is_ended_and_tried_again(facts: dict[str, Any]) -> None:
    day = facts["spark_submit"]["hung"]
    assert day["state"] == "success"
    assert day["tasks"]["export_items"] == {"state": "success", "tries": 2}
    assert not facts["spark_submit"]["still there"]


def test_a_day_takes_its_turn_after_the_earlier_ones(facts: dict[str, Any]) -> None:
    assert facts["turns"] == [False, True]


def test_candidates_that_never_come_fail_the_day_once(facts: dict[str, Any]) -> None:
    day = facts["spark_submit"]["missed"]
    assert day["state"] == "failed"
    assert day["tasks"]["wait_for_candidates"] == {"state": "failed", "tries": 1}
    assert day["commands"] == []


def test_a_corrected_day_takes_its_runs_own_settings(facts: dict[str, Any]) -> None:
    commands = {command[0]: command[1:] for command in facts["spark_submit"]["corrected"]["commands"]}
    own = ["--set", "gate.max_unknown_share=0"]
    for job in ("update_histories", "export_items", "score_daily"):
        assert own == commands[job][6:8]
    assert commands["score_daily"][-3:] == ["--replace", "--accept", "max_abs_score"]
    assert "--replace" not in commands["update_histories"]


def test_a_week_trains_and_judges_on_the_ds_whose_labels_are_known(facts: dict[str, Any]) -> None:
    week = facts["spark_submit"]["weekly"]
    assert week["state"] == "success"
    common = ["--ds", "2001-02-15", "--env", "local", "--set", "scoring.top_k=7"]
    challenger = ["--checkpoint", "gesr"]
    assert week["commands"] == [
        ["train", *common, "--model", "gesr"],
        ["update_histories", *common],
        ["export_items", *common, *challenger],
        ["score_daily", *common, *challenger, "--target", "scores_challenger"],
        ["evaluate", *common, "--target", "scores_challenger"],
        ["promote", *common, "--challenger", "scores_challenger"],
    ]


def test_the_spark_providers_operator_gets_the_same_command_lines(facts: dict[str, Any]) -> None:
    day, here = facts["spark_operator"]["good"], facts["spark_submit"]["good"]
    assert day["state"] == "success"
    assert day["commands"] == [
        [word.replace("2001-02-14", "2001-02-20") for word in command] for command in here["commands"]
    ]


def test_databricks_is_asked_for_one_task_of_the_bundles_job(facts: dict[str, Any]) -> None:
    found = facts["databricks"]
    asked = {"job_id": 7, "only": ["score_daily"], "job_parameters": {"ds": "2001-02-15"}}
    assert found["good"] == {"asked": [asked], "outcome": "done"}
    assert found["refused"]["outcome"].startswith(
        "AirflowFailException: not tried again. The job's last line: GateRefused"
    )
    assert found["lost"]["outcome"].startswith("AirflowException: ")


def test_the_bundles_jobs_have_the_tasks_that_are_asked_for() -> None:
    names = yaml.safe_load((ROOT / "pipelines/airflow/settings.yaml").read_text())["databricks_jobs"]
    for name, order in (("daily", ORDER), ("weekly", WEEK)):
        resources = yaml.safe_load((ROOT / f"pipelines/databricks/resources/{name}.yml").read_text())["resources"]
        job = next(job for job in resources["jobs"].values() if job["name"] == names[name])
        assert [task["task_key"] for task in job["tasks"]] == [task for task in order if not task.startswith("wait")]
        assert "ds" in {parameter["name"] for parameter in job["parameters"]}


def test_an_exit_code_that_only_a_text_tells_decides_the_same(facts: dict[str, Any]) -> None:
    names = {"2": "ConfigurationError", "3": "InputError", "4": "GateRefused", "5": "AnotherRunWon"}
    for code, outcome in facts["texts"].items():
        assert outcome.startswith(f"failed: exit code {code} ({names[code]})" if code in names else "retried"), code
    assert facts["by the ledger"] == "failed: not tried again. The ledger says: GateRefused: a number (run r)"


def test_every_word_of_a_command_line_is_one_that_the_job_knows(facts: dict[str, Any]) -> None:
    played = [*facts["spark_submit"].values(), *facts["spark_operator"].values()]
    commands = {tuple(command) for day in played if isinstance(day, dict) for command in day["commands"]}
    assert {command[0] for command in commands} == {task for task in [*ORDER, *WEEK] if not task.startswith("wait")}
    for job, *words in sorted(commands):
        # the parser names all words that it does not know, and does so before anything else is done
        with pytest.raises(ConfigurationError, match=r"^unrecognized arguments: --nobody-knows \(see "):
            importlib.import_module(f"jobs.{job}").main([*words, "--nobody-knows"])


def test_the_label_window_is_the_one_of_the_configuration() -> None:
    settings = yaml.safe_load((ROOT / "pipelines/airflow/settings.yaml").read_text())
    labels = yaml.safe_load((ROOT / "conf/base/labels.yaml").read_text())
    assert settings["label_window_days"] == labels["window_days"]
