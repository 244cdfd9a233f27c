"""The one place that turns a `ds` into instants. Runs anywhere."""

from __future__ import annotations

import datetime as dt
import re

from gesr_core.errors import ConfigurationError

_DS = re.compile(r"\d{4}-\d{2}-\d{2}")


def request_time(ds: str) -> dt.datetime:
    """Return `ds` 00:00 UTC: histories, retrieval and features use only events strictly before it.

    Raises:
        ConfigurationError: `ds` is not a calendar date written YYYY-MM-DD.
    """
    try:
        if not _DS.fullmatch(ds):
            raise ValueError(ds)
        return dt.datetime.strptime(ds, "%Y-%m-%d").replace(tzinfo=dt.timezone.utc)
    except ValueError as err:
        raise ConfigurationError(f"--ds {ds!r} is not a date of the form YYYY-MM-DD") from err


def request_time_us(ds: str) -> int:
    """Return the request time in microseconds since 1970 UTC, the unit in which Spark compares instants here."""
    return round(request_time(ds).timestamp()) * 1_000_000


def shift_ds(ds: str, *, days: int) -> str:
    """Return the `ds` that lies `days` later (earlier when negative)."""
    return (request_time(ds) + dt.timedelta(days=days)).strftime("%Y-%m-%d")
