"""Which `ds` a run is about, whatever started it."""

from __future__ import annotations

import datetime as dt

import pytest

from pipelines.airflow.days import ds_before, scored_ds

UTC = dt.timezone.utc


@pytest.mark.parametrize(
    ("logical_date", "ds"),
    [
        (dt.datetime(2001, 2, 21, 2, tzinfo=UTC), "2001-02-21"),
        (dt.datetime(2001, 2, 21, tzinfo=UTC), "2001-02-21"),
        (dt.datetime(2001, 2, 21, 23, 59, 59, tzinfo=UTC), "2001-02-21"),
        # still the day before in Tokyo's noon, as UTC counts
        (dt.datetime(2001, 2, 21, 8, tzinfo=dt.timezone(dt.timedelta(hours=9))), "2001-02-20"),
        (dt.datetime(2000, 12, 31, 20, tzinfo=dt.timezone(-dt.timedelta(hours=5))), "2001-01-01"),
    ],
)
def test_ds_is_the_utc_date_of_the_logical_date(logical_date: dt.datetime, ds: str) -> None:
    assert scored_ds(logical_date) == ds


def test_labels_are_known_a_window_later() -> None:
    assert ds_before(dt.datetime(2001, 3, 3, 2, tzinfo=UTC), days=7) == "2001-02-24"


def test_a_run_without_a_date_or_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no logical date .* --logical-date 2001-02-21T02:00:00\+00:00"):
        scored_ds(None)
    with pytest.raises(ValueError, match="2001-02-21T02:00:00 has no time zone"):
        scored_ds(dt.datetime(2001, 2, 21, 2))
