"""A task that runs one of jobs/: its command line, and the three ways of starting it (settings.yaml, runner)."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.databricks.operators.databricks import DatabricksRunNowOperator
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator, Context, Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from pipelines.airflow import outcomes, tables
from pipelines.airflow.days import ds_before, scored_ds
from pipelines.airflow.settings import Settings


@dataclass(frozen=True)
class Job:
    """A job of jobs/, as one task of a DAG runs it.

    Args:
        name: jobs/<name>.py; also of the task, and of the one in the bundle's job on Databricks.
        days_back: how long before the run's `ds` lies the one that the job is about.
        options: of its command line, beside those of every job.
        target: the table that it scores to, for what the ledger knows of it.
        corrects: whether a run's `replace` and `accept` are meant for it.
    """

    name: str
    days_back: int = 0
    options: tuple[str, ...] = ()
    target: str | None = None
    corrects: bool = False


# What a run may be started with.
RUN_PARAMS: Final = {
    "set": Param([], type="array", description="settings of this run alone, KEY=VALUE"),
    "replace": Param(False, type="boolean", description="score and publish again what is published"),
    "accept": Param([], type="array", description="bounds of the gate to overrule, on record"),
}


def shared(settings: Settings) -> dict[str, Any]:
    """Return what both DAGs are."""
    return {
        "start_date": dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc),
        # what was missed is made up for by a back-fill, on purpose and in order
        "catchup": False,
        "max_active_runs": 1,
        "default_args": {
            "retries": settings.retries,
            "retry_delay": dt.timedelta(seconds=settings.retry_delay_s),
            "retry_exponential_backoff": True,
            "max_retry_delay": dt.timedelta(hours=1),
        },
        "params": RUN_PARAMS,
        "tags": ["gesr"],
    }


def arguments(job: Job, settings: Settings, *, ds: str, params: Mapping[str, Any]) -> list[str]:
    """Return the job's command line; `params` are the run's own: `set`, `replace`, `accept`."""
    words = ["--ds", ds, "--env", settings.env]
    words += [word for value in (*settings.set, *params["set"]) for word in ("--set", value)]
    words += job.options
    if job.corrects:
        words += ["--replace"] if params["replace"] else []
        words += [word for check in params["accept"] for word in ("--accept", check)]
    return words


def ds_of(job: Job, context: Context) -> str:
    """Return the `ds` that a job of this run is about."""
    return ds_before(context["dag_run"].logical_date, days=job.days_back)


def run(job: Job, settings: Settings, *, bundle_job: str, **options: Any) -> BaseOperator:
    """Return the task; `bundle_job` is the job of the Databricks bundle that it belongs to."""
    options["execution_timeout"] = options.get("execution_timeout") or dt.timedelta(hours=settings.job_timeout_h)
    if settings.runner == "spark_submit":
        return SubmitHere(job=job, settings=settings, task_id=job.name, **options)
    if settings.runner == "spark_operator":
        return SubmitByProvider(
            job=job,
            settings=settings,
            task_id=job.name,
            application=str(settings.project_folder / "jobs" / f"{job.name}.py"),
            conn_id=settings.spark_connection,
            name=job.name,
            **options,
        )
    return RunOnDatabricks(
        job=job,
        settings=settings,
        task_id=job.name,
        job_name=bundle_job,
        databricks_conn_id=settings.databricks_connection,
        # else the run's own parameters would be sent as the job's
        forward_dag_params=False,
        **options,
    )


class SubmitHere(BaseOperator):
    """spark-submit as a process of the worker; it knows the exit code and the last line."""

    def __init__(self, *, job: Job, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self.job, self.settings = job, settings
        self.process = SubprocessHook()

    def execute(self, context: Context) -> None:
        words = arguments(self.job, self.settings, ds=ds_of(self.job, context), params=context["params"])
        command = ["spark-submit", f"jobs/{self.job.name}.py", *words]
        done = self.process.run_command(
            ["env", *_variables(self.settings), *command], cwd=str(self.settings.project_folder)
        )
        outcomes.conclude(done.exit_code, done.output)

    def on_kill(self) -> None:
        self.process.send_sigterm()


def _variables(settings: Settings) -> list[str]:
    # Airflow's own environment has a pyspark too (the Spark provider's), which must not be the jobs'.
    if settings.environment is None:
        return []
    environment = settings.project_folder / settings.environment
    path = f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return ["-u", "SPARK_HOME", "-u", "SPARK_CONF_DIR", f"VIRTUAL_ENV={environment}", f"PATH={path}"]


class SubmitByProvider(SparkSubmitOperator):
    """The Spark provider's operator, which keeps the exit code in its exception's text, if the cluster mode has it."""

    def __init__(self, *, job: Job, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self.job, self.settings = job, settings

    def execute(self, context: Context) -> None:
        ds = ds_of(self.job, context)
        self.application_args = arguments(self.job, self.settings, ds=ds, params=context["params"])
        try:
            super().execute(context)
        except Exception as err:
            outcomes.explain(err, refusal=_refusal(self.job, self.settings, ds))


class RunOnDatabricks(DatabricksRunNowOperator):
    """One task of the bundle's job, by its key; an exit code is never told."""

    def __init__(self, *, job: Job, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self.job, self.settings = job, settings

    def execute(self, context: Context) -> None:
        own = {name: value for name, value in context["params"].items() if name in RUN_PARAMS and value}
        if own:
            raise AirflowFailException(f"on Databricks a run has no parameters of its own, but this one has {own}")
        # The bundle's own job goes back from the run's ds to the one that a task is about.
        job_parameters = {"ds": scored_ds(context["dag_run"].logical_date)}
        self.json = {"only": [self.job.name], "job_parameters": job_parameters}
        try:
            super().execute(context)
        except Exception as err:
            outcomes.explain(err, refusal=_refusal(self.job, self.settings, ds_of(self.job, context)))


def _refusal(job: Job, settings: Settings, ds: str) -> str | None:
    if job.target is None:
        return None
    return tables.refusal(settings.table("ledger"), ds=ds, target=job.target)


def skip_unpublished(job: Job, settings: Settings) -> Any:
    """Return a `pre_execute` that skips a job whose `ds` was never published: before the first, after a refusal."""

    def skip(context: Context) -> None:
        ds = ds_of(job, context)
        if not tables.is_published(settings.table("ledger"), ds=ds, target="scores"):
            raise AirflowSkipException(f"the ledger knows no publication of ds {ds}: nothing to evaluate")

    return skip
