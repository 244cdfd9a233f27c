"""The Databricks bundle: what its own library accepts, what that accepts wrongly, and the jobs' own parsers."""

from __future__ import annotations

import configparser
import copy
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gesr_core import entry
from gesr_core.config import CONF_DIR, Config, load_config
from gesr_core.errors import ConfigurationError
from gesr_core.names import Role

pytest.importorskip("databricks.bundles", reason="the petastorm set has no databricks-bundles")

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "pipelines/databricks"
TARGETS = ("dev", "prod")
JOBS = ("gesr_daily", "gesr_weekly")
# What the workspace and the bundle know, as an example.
KNOWN = {
    "bundle.name": "gesr",
    "bundle.target": "prod",
    "workspace.current_user.userName": "someone@example.com",
    "workspace.file_path": "/Workspace/files",
}
TRIGGER = {"job.trigger.time.iso_date": "2026-01-31"}
EXAMPLE = "2026-01-31"


class Parsed(Exception):
    """The job's parser took the command line, and its configuration was read."""

    def __init__(self, config: Config, ds: str) -> None:
        super().__init__(ds)
        self.config, self.ds = config, ds


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def bundle() -> dict[str, Any]:
    """The bundle's file with what it includes."""
    merged = read(BUNDLE / "databricks.yml")
    included = [file for pattern in merged["include"] for file in sorted(BUNDLE.glob(pattern))]
    merged["resources"] = {"jobs": {}}
    for file in included:
        merged["resources"]["jobs"] |= read(file)["resources"]["jobs"]
    return merged


def variables(content: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Every variable's value in a target: the target's own, else its default."""
    own = content["targets"][target].get("variables", {})
    declared = content["variables"]
    assert not {*own} - {*declared}
    values = {name: own.get(name, declared[name].get("default")) for name in declared}
    return {f"var.{name}": value for name, value in values.items() if value is not None} | KNOWN


def resolved(value: Any, known: Mapping[str, Any]) -> Any:
    """A value with every `${...}` replaced; one that is nothing but a reference takes the type of what it names."""
    if isinstance(value, dict):
        return {key: resolved(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item, known) for item in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\$\{([^}]*)\}", value)
    if whole and not isinstance(known[whole[1]], str):
        return known[whole[1]]
    return re.sub(r"\$\{([^}]*)\}", lambda found: resolved(str(known[found[1]]), known), value)


def jobs_of(target: str) -> dict[str, dict[str, Any]]:
    content = bundle()
    jobs: dict[str, dict[str, Any]] = resolved(content["resources"]["jobs"], variables(content, target))
    return jobs


def require_sound(job: Mapping[str, Any]) -> None:
    """Check what `Job.from_dict` accepts wrongly.

    Raises:
        ValueError: names the task and what it refers to in vain.
    """
    clusters = [cluster["job_cluster_key"] for cluster in job["job_clusters"]]
    keys = [task["task_key"] for task in job["tasks"]]
    for doubled in (clusters, keys):
        if len(doubled) != len({*doubled}):
            raise ValueError(f"doubled among {doubled}")
    done: set[str] = set()
    for task in job["tasks"]:
        if task.get("job_cluster_key") not in clusters:
            raise ValueError(f"{task['task_key']} runs on {task.get('job_cluster_key')}, which is none of {clusters}")
        for before in task.get("depends_on", []):
            # A task stands after those that it depends on: so there is no cycle either.
            if before["task_key"] not in done:
                raise ValueError(f"{task['task_key']} depends on {before['task_key']}, which is no task before it")
        done.add(task["task_key"])
    if unused := {*clusters} - {task["job_cluster_key"] for task in job["tasks"]}:
        raise ValueError(f"clusters without a task: {unused}")


def entry_points() -> dict[str, str]:
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = cfg["options.entry_points"]["console_scripts"].split("\n")
    return dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines if line)


def job_module(entry_point: str) -> Any:
    module, _, function = entry_points()[entry_point].partition(":")
    found = importlib.import_module(module)
    assert callable(getattr(found, function))
    return found


def parse(task: Mapping[str, Any], job: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """Give a task's parameters to its job's `main`, up to the configuration, which is read."""
    wheel = task["python_wheel_task"]
    given = {f"job.parameters.{p['name']}": resolved_dynamic(p["default"], TRIGGER) for p in job["parameters"]}
    arguments = [resolved_dynamic(parameter, given) for parameter in wheel["parameters"]]
    module = job_module(wheel["entry_point"])

    def stop(args: Any) -> Config:
        raise Parsed(entry.job_config(args), args.ds)

    with monkeypatch.context() as patch:
        patch.setattr(module, "job_config", stop)
        with pytest.raises(Parsed, match=r"\d{4}-\d{2}-\d{2}") as parsed:
            module.main(arguments)
    return parsed.value


def resolved_dynamic(value: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\{\{([^}]*)\}\}", lambda found: known[found[1]], value)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("target", TARGETS)
def test_every_reference_resolves(target: str) -> None:
    content = bundle()
    known = variables(content, target)
    for part in (content["resources"], content["targets"][target]):
        assert not [text for text in texts(resolved(part, known)) if "${" in text]
    used = re.findall(r"\$\{var\.(\w+)", " ".join(texts(content["resources"])))
    assert {*used} == {*content["variables"]}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", JOBS)
def test_the_bundles_own_library_reads_the_jobs(target: str, name: str) -> None:
    from databricks.bundles.jobs import Job

    job = jobs_of(target)[name]
    assert [task.task_key for task in Job.from_dict(job).tasks] == [task["task_key"] for task in job["tasks"]]  # type: ignore[arg-type, union-attr]
    require_sound(job)


@pytest.mark.parametrize("name", JOBS)
def test_jobs_have_a_schedule_time_outs_retries_and_somebody_to_tell(name: str) -> None:
    job = jobs_of("prod")[name]
    assert job["schedule"]["timezone_id"] == "UTC"
    assert job["max_concurrent_runs"] == 1
    assert job["queue"]["enabled"] is True
    assert job["email_notifications"]["on_failure"] == ["ranking-oncall@example.com"]
    assert job["email_notifications"]["on_duration_warning_threshold_exceeded"]
    (rule,) = job["health"]["rules"]
    assert (rule["metric"], rule["value"] < job["timeout_seconds"]) == ("RUN_DURATION_SECONDS", True)
    for task in job["tasks"]:
        assert 0 < task["timeout_seconds"] <= job["timeout_seconds"]
        assert (task["max_retries"], task["min_retry_interval_millis"], task["retry_on_timeout"]) == (2, 300_000, False)


def test_the_chains_are_those_of_a_night_and_of_a_week() -> None:
    chains = {name: [task["task_key"] for task in job["tasks"]] for name, job in jobs_of("prod").items()}
    assert chains["gesr_daily"] == ["update_histories", "export_items", "score_daily", "evaluate"]
    assert chains["gesr_weekly"] == ["train", "update_histories", "export_items", "score_daily", "evaluate", "promote"]
    for name, chain in chains.items():
        waits = [[b["task_key"] for b in task.get("depends_on", [])] for task in jobs_of("prod")[name]["tasks"]]
        assert waits == [[], *([task] for task in chain[:-1])]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", JOBS)
def test_every_parameter_is_one_of_the_jobs_own(target: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs_of(target)[name]
    days = {}
    for task in job["tasks"]:
        parsed = parse(task, job, monkeypatch)
        days[task["task_key"]] = parsed.ds
        catalog = {"dev": "dev", "prod": "main"}[target]
        assert parsed.config.table(Role.SCORES).location == f"{catalog}.ranking.scores"
    earlier = "2026-01-24"
    if name == "gesr_daily":
        assert days.pop("evaluate") == earlier
        assert {*days.values()} == {EXAMPLE}
    else:
        assert {*days.values()} == {earlier}


def test_the_label_window_is_the_configured_one() -> None:
    assert bundle()["variables"]["label_window_days"]["default"] == load_config("databricks").labels.window_days


def test_dev_writes_nothing_of_production() -> None:
    dev, prod = load_config("databricks,databricks_dev"), load_config("databricks")
    read = {Role.EVENTS, Role.ITEMS, Role.USERS, Role.CANDIDATES}
    for role in Role:
        assert (dev.table(role).location == prod.table(role).location) == (role in read), role
    for folder in ("checkpoints", "item_states", "training_sets"):
        assert dev.folder(folder) != prod.folder(folder)
    assert dev.training.mlflow_model != prod.training.mlflow_model
    assert dev.training.mlflow_experiment != prod.training.mlflow_experiment


def test_the_champions_are_those_of_the_configured_models() -> None:
    for target in TARGETS:
        known = variables(bundle(), target)
        model = load_config(known["var.environment"]).training.mlflow_model
        assert known["var.checkpoint"] == f"models:/{model}@champion"


def test_every_job_has_an_entry_point() -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__"}
    expected = {f"gesr-{job.replace('_', '-')}": f"jobs.{job}:run" for job in jobs}
    assert entry_points() == expected
    for name in expected:
        job_module(name)


def test_the_wheel_is_the_one_that_is_built() -> None:
    content = bundle()
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT / "setup.cfg", encoding="utf-8")
    name = cfg["metadata"]["name"].replace("-", "_")
    artifact = content["artifacts"]["gesr"]
    wheel = ROOT / f"dist/{name}-*.whl"
    assert (BUNDLE / artifact["path"]).resolve() == ROOT
    assert [(BUNDLE / file["source"]).resolve() for file in artifact["files"]] == [wheel]
    for job in content["resources"]["jobs"].values():
        for task in job["tasks"]:
            assert task["python_wheel_task"]["package_name"] == name
            (library,) = task["libraries"]
            # Relative to the file that it stands in.
            assert (BUNDLE / "resources" / library["whl"]).resolve() == wheel
    assert [(BUNDLE / path).resolve() for path in content["sync"]["paths"]] == [BUNDLE, CONF_DIR]


def _cluster(job: dict[str, Any]) -> None:
    job["tasks"][0]["job_cluster_key"] = "cpus"


def _dependency(job: dict[str, Any]) -> None:
    job["tasks"][1]["depends_on"] = [{"task_key": "update_history"}]


def _cycle(job: dict[str, Any]) -> None:
    job["tasks"][0]["depends_on"] = [{"task_key": "evaluate"}]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(_cluster, "runs on cpus"), (_dependency, "depends on update_history,"), (_cycle, "depends on evaluate,")],
)
def test_what_the_library_accepts_wrongly_is_seen(spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    from databricks.bundles.jobs import Job

    job = copy.deepcopy(jobs_of("prod")["gesr_daily"])
    spoil(job)
    Job.from_dict(job)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        require_sound(job)


@pytest.mark.parametrize("parameter", ["--checkpiont=gesr", "--target"])
def test_a_parameter_that_the_job_does_not_know_is_seen(parameter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs_of("prod")["gesr_daily"]
    task = copy.deepcopy(job["tasks"][1])
    task["python_wheel_task"]["parameters"].append(parameter)
    with pytest.raises(ConfigurationError, match=r"unrecognized arguments"):
        parse(task, job, monkeypatch)
