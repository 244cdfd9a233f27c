"""Labels of the declared tasks, checked by hand."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pyspark.sql import SparkSession

from gesr_core.config import Task
from gesr_core.join.labels import positives
from gesr_core.spark_settings import settings

pytestmark = pytest.mark.spark

TASKS = [
    Task(name="bought", actions=["buy"], score_weight=1.0),
    Task(name="spent", actions=["buy"], value_above="user_median"),
    Task(name="touched"),
]
# An event of another table's partition: the dates that are asked for replace it.
Event = tuple[Any, Any, dt.datetime, str | None, float | None]


def at(day: int, *, hour: int = 0) -> dt.datetime:
    return dt.datetime(2024, 1, day, hour, tzinfo=dt.timezone.utc)


def labelled(spark: SparkSession, events: list[Event], *, dates: list[str]) -> set[tuple[Any, ...]]:
    schema = "user_id bigint, item_id bigint, event_ts timestamp, action string, value double, ds string"
    df = spark.createDataFrame([(*event, "a partition") for event in events], schema)
    return {tuple(row) for row in positives(df, dates=dates, window_days=7, tasks=TASKS).collect()}


def test_the_window_holds_the_request_time_and_not_its_end(spark: SparkSession) -> None:
    events: list[Event] = [
        (1, 10, at(9, hour=23), "view", 1.0),
        (1, 11, at(10), "view", 1.0),
        (1, 12, at(16, hour=23), "view", 1.0),
        (1, 13, at(17), "view", 1.0),
    ]
    assert labelled(spark, events, dates=["2024-01-10"]) == {
        ("2024-01-10", 1, 11, 0, 0, 1),
        ("2024-01-10", 1, 12, 0, 0, 1),
    }


def test_a_spend_must_exceed_the_median_of_the_users_own_past_spends(spark: SparkSession) -> None:
    # User 1 spent 1, 3 and 10 before: the median is 3. The view of 100 is no spend. What comes later does not count.
    past: list[Event] = [(1, 5, at(3), "buy", value) for value in (1.0, 3.0, 10.0)]
    past.append((1, 5, at(3), "view", 100.0))
    events: list[Event] = [
        *past,
        (1, 20, at(11), "buy", 3.0),  # equal is not above
        (1, 21, at(11), "buy", 3.5),
        (1, 22, at(11), "view", 99.0),
        (1, 23, at(11), "buy", None),
        (1, 24, at(11), "buy", 2.0),
        (1, 24, at(12), "buy", 4.0),  # any event of the window will do
        (1, 25, at(12), None, 4.0),
        (2, 20, at(11), "buy", 50.0),  # no event before: no median, no label
    ]
    assert labelled(spark, events, dates=["2024-01-10"]) == {
        ("2024-01-10", 1, 20, 1, 0, 1),
        ("2024-01-10", 1, 21, 1, 1, 1),
        ("2024-01-10", 1, 22, 0, 0, 1),
        ("2024-01-10", 1, 23, 1, 0, 1),
        ("2024-01-10", 1, 24, 1, 1, 1),
        ("2024-01-10", 1, 25, 0, 0, 1),
        ("2024-01-10", 2, 20, 1, 0, 1),
    }


def test_dates_do_not_see_one_another(spark: SparkSession) -> None:
    events: list[Event] = [
        (1, 5, at(1), "buy", 2.0),
        (1, 6, at(4), "buy", 3.0),  # above 2 on the 3rd; part of the past, median 2.5, on the 10th
        (1, 7, at(11), "buy", 2.4),
    ]
    both = labelled(spark, events, dates=["2024-01-03", "2024-01-10"])
    assert both == {("2024-01-03", 1, 6, 1, 1, 1), ("2024-01-10", 1, 7, 1, 0, 1)}
    assert both == labelled(spark, events, dates=["2024-01-03"]) | labelled(spark, events, dates=["2024-01-10"])


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_the_sessions_time_zone_changes_no_label(spark: SparkSession, zone: str) -> None:
    events: list[Event] = [(1, 10, at(9, hour=23), "buy", 1.0), (1, 11, at(10, hour=1), "buy", 9.0)]
    with settings(spark, {"spark.sql.session.timeZone": zone}):
        assert labelled(spark, events, dates=["2024-01-10"]) == {("2024-01-10", 1, 11, 1, 1, 1)}
