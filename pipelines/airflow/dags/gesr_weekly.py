"""Every week: train a challenger, score it beside the champion on a day after both trainings, promote the better.

All of it is about the `ds` that lies the label window before the run's: training ends with what was known on it, and
what its users did afterwards, by which both are judged, is known by now.
"""

from __future__ import annotations

import datetime as dt

from airflow.sdk import DAG, CronTriggerTimetable, chain

from pipelines.airflow.jobs import Job, run, shared
from pipelines.airflow.sensors import WaitForDaily
from pipelines.airflow.settings import Settings, load_settings

CHALLENGER = "scores_challenger"


def weekly(settings: Settings, *, schedule: str, model: str) -> DAG:
    """Return the DAG that trains `model` as the challenger."""
    bundle_job, back = settings.databricks_jobs["weekly"], settings.label_window_days
    checkpoint = ("--checkpoint", model)
    trained = Job("train", back, ("--model", model))
    judged = [
        Job("update_histories", back),
        Job("export_items", back, checkpoint),
        Job("score_daily", back, (*checkpoint, "--target", CHALLENGER), CHALLENGER, corrects=True),
        Job("evaluate", back, ("--target", CHALLENGER)),
        Job("promote", back, ("--challenger", CHALLENGER)),
    ]
    training_timeout, a_day = dt.timedelta(hours=settings.training_timeout_h), dt.timedelta(days=1)
    with DAG(
        "gesr_weekly",
        description="Trains a challenger, compares it with the champion, promotes the better",
        schedule=CronTriggerTimetable(schedule, timezone="UTC"),
        dagrun_timeout=dt.timedelta(days=3),
        doc_md=__doc__,
        **shared(settings),
    ) as dag:
        chain(
            run(trained, settings, bundle_job=bundle_job, execution_timeout=training_timeout),
            WaitForDaily(task_id="wait_for_daily", poke_interval=settings.poll_s, timeout=a_day),
            *(run(job, settings, bundle_job=bundle_job) for job in judged),
        )
    return dag


SETTINGS = load_settings()
if SETTINGS.weekly is not None:
    weekly(SETTINGS, schedule=SETTINGS.weekly["schedule"], model=SETTINGS.weekly["model"])
