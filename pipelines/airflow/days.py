"""Which `ds` a run of a DAG is about: the one place that says so. Imports no Airflow.

`{{ ds }}` is not used: a run that an asset started has no logical date and therefore no `ds`, and what a logical date
means depends on the timetable. Ours is CronTriggerTimetable, whose logical date is the moment of the trigger; a
CronDataIntervalTimetable's would lie a day earlier.
"""

from __future__ import annotations

import datetime as dt


def scored_ds(logical_date: dt.datetime | None) -> str:
    """Return the UTC date of a run's logical date: what lies before its 00:00 is known when the run starts.

    Raises:
        ValueError: the run has no logical date, or one without a time zone.
    """
    if logical_date is None:
        raise ValueError(
            "this run has no logical date (an asset started it, or somebody who gave none), and so no ds: trigger it "
            "with one, e.g. airflow dags trigger gesr_daily --logical-date 2001-02-21T02:00:00+00:00"
        )
    if logical_date.tzinfo is None:
        raise ValueError(f"logical date {logical_date.isoformat()} has no time zone, so its UTC date is not known")
    return logical_date.astimezone(dt.timezone.utc).strftime("%Y-%m-%d")


def ds_before(logical_date: dt.datetime | None, *, days: int) -> str:
    """Return the `ds` that lies `days` before a run's: with the label window's, the newest whose labels are all known.

    Raises:
        ValueError: as for `scored_ds`.
    """
    day = dt.date.fromisoformat(scored_ds(logical_date))
    return (day - dt.timedelta(days=days)).isoformat()
