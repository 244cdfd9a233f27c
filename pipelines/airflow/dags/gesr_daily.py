"""Every day: wait for the candidates of a `ds`, bring histories forward, score and publish, measure an older day.

What each task does, and on which exit code: docs/airflow.md.
"""

from __future__ import annotations

import datetime as dt

from airflow.sdk import DAG, Asset, Context, CronTriggerTimetable, Param

from pipelines.airflow.days import scored_ds
from pipelines.airflow.jobs import RUN_PARAMS, Job, run, skip_unpublished
from pipelines.airflow.sensors import WaitForCandidates, WaitForTurn
from pipelines.airflow.settings import load_settings

SETTINGS = load_settings()
SCORES = Asset("scores")

CHECKPOINT = ("--checkpoint", SETTINGS.daily["checkpoint"])
EVALUATED = Job("evaluate", days_back=SETTINGS.label_window_days)


def name_ds(context: Context, result: object = None) -> None:
    """Tell whom the asset starts which `ds` it is: their run has no logical date."""
    context["outlet_events"][SCORES].extra = {"ds": scored_ds(context["dag_run"].logical_date)}


with DAG(
    "gesr_daily",
    description="Scores the candidates of a day and publishes the best K per user",
    schedule=CronTriggerTimetable(SETTINGS.daily["schedule"], timezone="UTC"),
    start_date=dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc),
    # a missed night is made up for by a back-fill, on purpose and in order
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(hours=SETTINGS.candidates_timeout_h + 24),
    default_args={
        "retries": SETTINGS.retries,
        "retry_delay": dt.timedelta(seconds=SETTINGS.retry_delay_s),
        "retry_exponential_backoff": True,
        "max_retry_delay": dt.timedelta(hours=1),
    },
    params={
        "set": Param(RUN_PARAMS["set"], type="array", description="settings of this run alone, KEY=VALUE"),
        "replace": Param(RUN_PARAMS["replace"], type="boolean", description="score and publish again a published ds"),
        "accept": Param(RUN_PARAMS["accept"], type="array", description="bounds of the gate to overrule, on record"),
    },
    tags=["gesr"],
    doc_md=__doc__,
) as dag:
    jobs = [
        run(Job("update_histories"), SETTINGS, bundle_job=SETTINGS.databricks_jobs["daily"],
            max_active_tis_per_dag=1),
        run(Job("export_items", options=CHECKPOINT), SETTINGS,
            bundle_job=SETTINGS.databricks_jobs["daily"]),
        run(Job("score_daily", options=CHECKPOINT, target="scores", corrects=True), SETTINGS,
            bundle_job=SETTINGS.databricks_jobs["daily"], outlets=[SCORES], post_execute=name_ds),
        run(EVALUATED, SETTINGS, bundle_job=SETTINGS.databricks_jobs["daily"],
            pre_execute=skip_unpublished(EVALUATED, SETTINGS)),
    ]  # fmt: skip
    histories, items, scores, metrics = jobs
    waits = WaitForCandidates(task_id="wait_for_candidates", settings=SETTINGS, retries=0)
    turn = WaitForTurn(
        task_id="wait_for_turn",
        poke_interval=SETTINGS.poll_s,
        timeout=dt.timedelta(hours=SETTINGS.candidates_timeout_h + 24),
        retries=0,
    )
    waits >> turn >> histories >> items >> scores >> metrics
