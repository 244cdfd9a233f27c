"""Every week: train a challenger, score it beside the champion on a day after both trainings, promote the better.

All of it is about the `ds` that lies the label window before the run's: training ends with what was known on it, and
what its users did afterwards, by which both are judged, is known by now.
"""

from __future__ import annotations

import datetime as dt
from itertools import pairwise

from airflow.sdk import DAG, CronTriggerTimetable, Param

from pipelines.airflow.jobs import RUN_PARAMS, Job, run
from pipelines.airflow.sensors import WaitForDaily
from pipelines.airflow.settings import Settings, load_settings

CHALLENGER = "scores_challenger"
SETTINGS = load_settings()


def weekly(settings: Settings, *, schedule: str, model: str) -> DAG:
    """Return the DAG."""
    back, checkpoint = settings.label_window_days, ("--checkpoint", model)
    chain = [
        Job("train", back, ("--model", model)),
        Job("update_histories", back),
        Job("export_items", back, checkpoint),
        Job("score_daily", back, (*checkpoint, "--target", CHALLENGER), CHALLENGER, corrects=True),
        Job("evaluate", back, ("--target", CHALLENGER)),
        Job("promote", back, ("--challenger", CHALLENGER)),
    ]
    timeouts = {"train": dt.timedelta(hours=settings.training_timeout_h)}
    with DAG(
        "gesr_weekly",
        description="Trains a challenger, compares it with the champion, promotes the better",
        schedule=CronTriggerTimetable(schedule, timezone="UTC"),
        start_date=dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=dt.timedelta(days=3),
        default_args={
            "retries": settings.retries,
            "retry_delay": dt.timedelta(seconds=settings.retry_delay_s),
            "retry_exponential_backoff": True,
            "max_retry_delay": dt.timedelta(hours=1),
        },
        params={
            "set": Param(RUN_PARAMS["set"], type="array", description="settings of this run alone, KEY=VALUE"),
            "replace": Param(RUN_PARAMS["replace"], type="boolean", description="score the challenger again"),
            "accept": Param(RUN_PARAMS["accept"], type="array", description="bounds of the gate to overrule"),
        },
        tags=["gesr"],
        doc_md=__doc__,
    ) as dag:
        tasks = [
            run(
                job,
                settings,
                bundle_job=settings.databricks_jobs["weekly"],
                execution_timeout=timeouts.get(job.name),
            )
            for job in chain
        ]
        free = WaitForDaily(
            task_id="wait_for_daily", poke_interval=settings.poll_s, timeout=dt.timedelta(days=1), retries=0
        )
        order = [tasks[0], free, *tasks[1:]]
        for former, later in pairwise(order):
            former >> later
    return dag


if SETTINGS.weekly is not None:
    weekly(SETTINGS, schedule=SETTINGS.weekly["schedule"], model=SETTINGS.weekly["model"])
