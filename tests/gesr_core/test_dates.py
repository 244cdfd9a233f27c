"""Impression dates and their split into training and validation."""

from __future__ import annotations

import pytest

from gesr_core.dates import ds_of, impression_dates, shift_ds, split_dates
from gesr_core.errors import InputError


@pytest.mark.parametrize(
    ("text", "ds"), [("2001-03-01", "2001-03-01"), ("2001-03-01-7d", "2001-02-22"), ("2001-03-01-0d", "2001-03-01")]
)
def test_a_command_line_may_name_a_date_by_another(text: str, ds: str) -> None:
    assert ds_of(text) == ds


def test_the_last_label_window_closes_at_the_request_time() -> None:
    dates = impression_dates("2001-02-21", dates=3, step_days=7, window_days=7)
    assert dates == ["2001-01-31", "2001-02-07", "2001-02-14"]


def test_steps_may_be_shorter_than_the_window() -> None:
    assert impression_dates("2001-03-01", dates=3, step_days=1, window_days=7) == [
        "2001-02-20",
        "2001-02-21",
        "2001-02-22",
    ]


@pytest.mark.parametrize(
    ("dates", "train", "validation"),
    [
        (["2001-01-31", "2001-02-07", "2001-02-14"], ["2001-01-31", "2001-02-07"], "2001-02-14"),
        # a date whose window is still open at the request time is in neither
        (["2001-01-31", "2001-02-07", "2001-02-15"], ["2001-01-31"], "2001-02-07"),
        # so is one whose window reaches past the validation's request time
        (["2001-02-06", "2001-02-07", "2001-02-08", "2001-02-14"], ["2001-02-06", "2001-02-07"], "2001-02-14"),
        (["2001-02-14", "2001-02-07", "2001-02-14"], ["2001-02-07"], "2001-02-14"),
    ],
)
def test_every_window_closes_before_the_next_split_begins(dates: list[str], train: list[str], validation: str) -> None:
    assert split_dates(dates, ds="2001-02-21", window_days=7) == (train, validation)
    assert all(shift_ds(ds, days=7) <= validation for ds in train)
    assert shift_ds(validation, days=7) <= "2001-02-21"


@pytest.mark.parametrize(
    ("dates", "message"), [([], "validate on"), (["2001-02-15"], "validate on"), (["2001-02-14"], "train on")]
)
def test_dates_that_leave_a_split_empty_are_refused(dates: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"no date to {message} before 2001-02-21.*raise impressions.dates"):
        split_dates(dates, ds="2001-02-21", window_days=7)
