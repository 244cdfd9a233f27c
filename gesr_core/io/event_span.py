"""The time that `events` spans, against the dates that a job is asked for. Driver only; runs one Spark job."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame, functions as F

from gesr_core.dates import request_time_us
from gesr_core.errors import InputError
from gesr_core.names import Col


def newest_event_us(events: DataFrame, *, dates: Sequence[str], label_dates: Sequence[str] = ()) -> int:
    """Return the time of the newest event in microseconds, once events are known to reach far enough either way.

    Raises:
        InputError: there is no event before one of the dates, or none from one of the `label_dates` on.
    """
    us = F.unix_micros(Col.EVENT_TS)
    first_us, newest_us = events.agg(F.min(us), F.max(us)).first() or (None, None)
    for ds in sorted({*dates, *label_dates}):
        if first_us is None or newest_us is None or first_us >= request_time_us(ds):
            raise InputError(f"events has no event before {ds}{'; lower impressions.dates' * (ds in label_dates)}")
        if ds in label_dates and newest_us < request_time_us(ds):
            raise InputError(f"events has no event from {ds} on to make labels of; are they loaded up to --ds?")
    return int(newest_us or 0)
