"""Runs in Airflow's environment, started by test_airflow.py: does what is tested with the DAGs, and tells it as JSON.

    python airflow_facts.py SCRATCH     AIRFLOW_HOME, PATH and PYTHONPATH as test_airflow.py sets them

No job is run: a spark-submit of ours notes its command line, says a last line and ends with the code that it is told.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException
from deltalake import write_deltalake

from pipelines.airflow import outcomes
from pipelines.airflow.settings import ROOT, VARIABLE

SCRATCH = Path(sys.argv[1])
DAY = dt.datetime(2001, 2, 15, 2, tzinfo=dt.timezone.utc)
CODES, COMMANDS = SCRATCH / "codes", SCRATCH / "commands"


def dags(**changes: Any) -> DagBag:
    """Read the DAGs with the settings of the project but for `changes`."""
    values = yaml.safe_load((ROOT / "pipelines/airflow/settings.yaml").read_text())
    values |= {
        "environment": None,
        "set": ["scoring.top_k=7"],
        "poll_s": 0.5,
        "retry_delay_s": 0.1,
        "retries": 2,
        "tables": {role: str(SCRATCH / role) for role in ("candidates", "ledger")},
        "daily": {"schedule": "0 2 * * *", "checkpoint": "models:/gesr@champion"},
        "weekly": {"schedule": "0 5 * * 1", "model": "gesr"},
        **changes,
    }
    file = SCRATCH / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    os.environ[VARIABLE] = str(file)
    return DagBag(ROOT / "pipelines/airflow/dags")


def of_the_project() -> list[str]:
    """The DAGs that the project's own settings give."""
    os.environ.pop(VARIABLE, None)
    return sorted(DagBag(ROOT / "pipelines/airflow/dags").dags)


def structure(dag: Any) -> dict[str, Any]:
    """What a DAG is, in plain values."""
    return {
        "timetable": type(dag.timetable).__name__,
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "tasks": {
            task.task_id: {
                "class": type(task).__name__,
                "before": sorted(task.downstream_task_ids),
                "retries": task.retries,
                "exponential": bool(task.retry_exponential_backoff),
                "timeout_s": task.execution_timeout.total_seconds() if task.execution_timeout else None,
                "outlets": [asset.name for asset in task.outlets],
                "at_a_time": task.max_active_tis_per_dag,
            }
            for task in dag.tasks
        },
    }


def play(dag: Any, *, day: int, codes: Mapping[str, Sequence[str]] | None = None, conf: Any = None) -> dict[str, Any]:
    """Run a day of February 2001 in this process; `codes` are how each job ends, try by try, then always 0."""
    for folder in (CODES, COMMANDS):
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            file.unlink()
    for job, endings in (codes or {}).items():
        (CODES / job).write_text("".join(f"{ending}\n" for ending in endings))
    run = dag.test(logical_date=DAY.replace(day=day), run_conf=conf)
    tasks = {ti.task_id: {"state": str(ti.state), "tries": ti.try_number} for ti in run.get_task_instances()}
    commands = [json.loads(file.read_text()) for file in sorted(COMMANDS.iterdir())]
    return {"state": str(run.state), "tasks": tasks, "commands": commands}


def write_candidates(*days: int) -> None:
    """Append candidates of days of February 2001."""
    ds = [f"2001-02-{day:02d}" for day in days]
    rows = pa.table({"ds": ds, "user_id": list(range(len(ds)))})
    write_deltalake(str(SCRATCH / "candidates"), rows, mode="append", partition_by=["ds"])


def write_published(ds: str) -> None:
    """Write a ledger that knows one publication."""
    row = {"kind": "run_published", "job": "score_daily", "ds": ds, "target": "scores", "run_id": "r", "details": "{}"}
    columns = {name: [value] for name, value in row.items()} | {"recorded_at": [dt.datetime.now(dt.timezone.utc)]}
    write_deltalake(str(SCRATCH / "ledger"), pa.table(columns))


def days_by_spark_submit() -> dict[str, Any]:
    """Days of the daily DAG, one ending after the other, and a run of the weekly one."""
    bag = dags()
    daily = bag.dags["gesr_daily"]
    # they come while the first day waits for them
    late = threading.Timer(6, write_candidates, args=[14, 16, 17, 18, 19, 20, 21, 22, 23])
    late.start()
    started_s = time.monotonic()
    write_candidates(13)
    played = {"good": play(daily, day=14), "waited_s": time.monotonic() - started_s}
    played["refused"] = play(daily, day=16, codes={"score_daily": ["4"]})
    played["retried"] = play(daily, day=17, codes={"export_items": ["1", "KILL"]})
    played["given up"] = play(daily, day=18, codes={"export_items": ["1", "1", "1"]})
    conf = {"set": ["gate.max_unknown_share=0"], "replace": True, "accept": ["max_abs_score"]}
    played["corrected"] = play(daily, day=19, conf=conf)
    write_published("2001-02-15")
    played["evaluated"] = play(daily, day=22)
    played["weekly"] = play(bag.dags["gesr_weekly"], day=22)
    played["missed"] = play(dags(candidates_timeout_h=1 / 3600).dags["gesr_daily"], day=28)
    daily = dags(job_timeout_h=8 / 3600).dags["gesr_daily"]
    played["hung"] = play(daily, day=23, codes={"export_items": ["HANG"]})
    played["still there"] = Path("/proc", (SCRATCH / "hung").read_text()).exists()
    return played


def turns() -> list[bool]:
    """Whether it is a run's turn while a run of an earlier day is under way, and when none is."""
    sensor, found = dags().dags["gesr_daily"].get_task("wait_for_turn"), []
    for earlier in (SimpleNamespace(run_id="earlier"), None):
        ti = SimpleNamespace(get_previous_dagrun=lambda state, earlier=earlier: {"running": earlier}[state])
        found.append(sensor.poke({"ti": ti}))
    return found


def days_by_the_provider() -> dict[str, Any]:
    """The same with the Spark provider's operator, whose connection is local."""
    daily = dags(runner="spark_operator").dags["gesr_daily"]
    return {
        "good": play(daily, day=20),
        "refused": play(daily, day=21, codes={"score_daily": ["4"]}),
    }


class Workspace:
    """A Databricks that knows one job and ends each run of it as it is told."""

    def __init__(self, error: str | None) -> None:
        self.error = error
        self.asked: list[Any] = []

    def find_job_id_by_name(self, name: str) -> int:
        return {"gesr_daily": 7}[name]

    def run_now(self, json: Any) -> int:
        self.asked.append(json)
        return 1

    def get_run_page_url(self, run_id: int) -> str:
        return f"https://workspace/{run_id}"

    def get_run(self, run_id: int) -> Any:
        result = "FAILED" if self.error else "SUCCESS"
        state = {"life_cycle_state": "TERMINATED", "result_state": result, "state_message": ""}
        return {"state": state, "tasks": [{"run_id": 2, "task_key": "score_daily", "state": state}]}

    def get_run_output(self, run_id: int) -> Any:
        return {"error": self.error}

    def get_run_state(self, run_id: int) -> Any:
        raise NotImplementedError("nobody asks for a state without its run")


def on_databricks(error: str | None) -> dict[str, Any]:
    """What is asked of Databricks for score_daily, and what becomes of the task."""
    task = dags(runner="databricks").dags["gesr_daily"].get_task("score_daily")
    task.__dict__["_hook"] = workspace = Workspace(error)
    task.do_xcom_push = task.durable = False
    run = type("Run", (), {"logical_date": DAY})
    context: Any = {"dag_run": run, "params": {"set": [], "replace": False, "accept": []}, "ti": None}
    try:
        type(task).execute.__wrapped__(task, context)
        outcome = "done"
    except Exception as err:
        outcome = f"{type(err).__name__}: {err}"
    return {"asked": workspace.asked, "outcome": outcome}


def outcome_of(text: str, refusal: str | None = None) -> str:
    """What becomes of a task whose operator fails with a text."""
    try:
        outcomes.explain(RuntimeError(text), refusal=refusal)
    except AirflowFailException as err:
        return f"failed: {err}"
    except RuntimeError:
        return "retried"


def main() -> None:
    bag = dags()
    facts = {
        "import_errors": bag.import_errors,
        "structure": {name: structure(dag) for name, dag in bag.dags.items()},
        "own settings": of_the_project(),
        "unsafe": dags(daily={"schedule": "0 2 * * *", "checkpoint": "gesr"}).import_errors,
        "spark_submit": days_by_spark_submit(),
        "turns": turns(),
        "spark_operator": days_by_the_provider(),
        "databricks": {
            "good": on_databricks(None),
            "refused": on_databricks("GateRefused: max_unknown_share is 0.5, bound 0.01"),
            "lost": on_databricks("Cluster terminated"),
        },
        "texts": {
            code: outcome_of(f"Cannot execute: spark-submit. Error code is: {code}.") for code in (1, 2, 3, 4, 5, 137)
        },
        "by the ledger": outcome_of("Driver exited with status FAILED", "GateRefused: a number (run r)"),
    }
    (SCRATCH / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
