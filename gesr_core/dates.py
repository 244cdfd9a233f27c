"""The one place that turns a `ds` into instants. Runs anywhere."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

from gesr_core.errors import ConfigurationError, InputError

_DS = re.compile(r"\d{4}-\d{2}-\d{2}")
_DAYS_BEFORE = re.compile(r"(.*)-(\d{1,4})d")


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


def ds_of(text: str) -> str:
    """Return the `ds` that a command line names: itself, or with `-7d` behind it the one seven days before.

    For schedulers that know a date and cannot reckon with it.

    Raises:
        ConfigurationError: what is shifted is not a date.
    """
    shifted = _DAYS_BEFORE.fullmatch(text)
    return shift_ds(shifted[1], days=-int(shifted[2])) if shifted else text


def impression_dates(ds: str, *, dates: int, step_days: int, window_days: int) -> list[str]:
    """Return the `dates` past days to make impressions of, oldest first.

    Label windows are [request time, + window_days); the newest one closes at the request time of `ds`.
    """
    return [shift_ds(ds, days=-window_days - step_days * back) for back in reversed(range(dates))]


def split_dates(dates: Sequence[str], *, ds: str, window_days: int) -> tuple[list[str], str]:
    """Split impression dates into those to train on, oldest first, and the one to validate on.

    Validation is the last date whose label window closes by the request time of `ds`; training dates are those whose
    windows close by the validation's request time. What overlaps either boundary is in neither.

    Raises:
        InputError: no date is left to validate on, or none to train on.
    """
    closed = [date for date in sorted(set(dates)) if shift_ds(date, days=window_days) <= ds]
    train = [date for date in closed if shift_ds(date, days=window_days) <= closed[-1]]
    if not train:
        raise InputError(
            f"impressions of {sorted(set(dates))} leave no date to {'train' if closed else 'validate'} on before {ds}: "
            f"a label window of {window_days} days must close before the next split's first request time "
            "(run build_candidates.py --impressions, or raise impressions.dates)"
        )
    return train, closed[-1]
