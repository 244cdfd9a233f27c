"""Every day: wait for the candidates of a `ds`, bring histories forward, score and publish, measure an older day.

What each task does, and on which exit code: docs/airflow.md.
"""

from __future__ import annotations

import datetime as dt

from airflow.sdk import DAG, Asset, Context, CronTriggerTimetable, chain

from pipelines.airflow.days import scored_ds
from pipelines.airflow.jobs import Job, run, shared, skip_unpublished
from pipelines.airflow.sensors import WaitForCandidates, WaitForTurn
from pipelines.airflow.settings import Settings, load_settings

SCORES = Asset("scores")


def daily(settings: Settings) -> DAG:
    """Return the DAG."""
    bundle_job, checkpoint = settings.databricks_jobs["daily"], ("--checkpoint", settings.daily["checkpoint"])
    scored = Job("score_daily", options=checkpoint, target="scores", corrects=True)
    measured = Job("evaluate", days_back=settings.label_window_days)
    # A run of an earlier day may itself wait for its candidates that long.
    longest = dt.timedelta(hours=settings.candidates_timeout_h + 24)
    with DAG(
        "gesr_daily",
        description="Scores the candidates of a day and publishes the best K per user",
        schedule=CronTriggerTimetable(settings.daily["schedule"], timezone="UTC"),
        dagrun_timeout=longest,
        doc_md=__doc__,
        **shared(settings),
    ) as dag:
        chain(
            WaitForCandidates(task_id="wait_for_candidates", settings=settings),
            WaitForTurn(task_id="wait_for_turn", poke_interval=settings.poll_s, timeout=longest),
            run(Job("update_histories"), settings, bundle_job=bundle_job, max_active_tis_per_dag=1),
            run(Job("export_items", options=checkpoint), settings, bundle_job=bundle_job),
            run(scored, settings, bundle_job=bundle_job, outlets=[SCORES], post_execute=name_ds),
            run(measured, settings, bundle_job=bundle_job, pre_execute=skip_unpublished(measured, settings)),
        )
    return dag


def name_ds(context: Context, result: object = None) -> None:
    """Tell whom the asset starts which `ds` it is: their run has no logical date."""
    context["outlet_events"][SCORES].extra = {"ds": scored_ds(context["dag_run"].logical_date)}


daily(load_settings())
