"""Histories as pure DataFrame functions, against a reference in plain Python."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from gesr_core.dates import request_time_us
from gesr_core.join.histories import build_histories, histories_at, net_changes
from gesr_core.join.shards import shard_of
from gesr_core.spark_settings import settings

pytestmark = pytest.mark.spark

Event = tuple[Any, Any, dt.datetime | None, str | None, float | None]  # user, item, time, action, value


def at(day: int, hour: int = 0, *, microsecond: int = 0) -> dt.datetime:
    """An instant of January 2024."""
    return dt.datetime(2024, 1, day, hour, microsecond=microsecond, tzinfo=dt.timezone.utc)


def events_df(spark: SparkSession, events: list[Event], *, ids: str = "bigint") -> DataFrame:
    return spark.createDataFrame(
        events, f"user_id {ids}, item_id {ids}, event_ts timestamp, action string, value double"
    )


def collected(histories: DataFrame) -> dict[Any, list[tuple[Any, ...]]]:
    """Histories by user, times as microseconds: what Spark hands to Python is in the machine's own time zone."""
    rows = histories.selectExpr(
        "user_id",
        "transform(history, e -> struct(e.item_id, unix_micros(e.event_ts) AS us, e.action, e.value)) AS history",
    ).collect()
    return {row["user_id"]: [tuple(event) for event in row["history"]] for row in rows}


def newest(events: list[Event], *, user: Any, before_us: int, max_events: int) -> list[tuple[Any, ...]]:
    """The reference: sort, then cut."""
    past = {(us(e[2]), e[1], e[3], e[4]) for e in events if e[0] == user and e[2] and us(e[2]) < before_us}
    return [(item, time, action, value) for time, item, action, value in sorted(past)[-max_events:]]


def us(when: dt.datetime) -> int:
    return round((when - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)) / dt.timedelta(microseconds=1))


def test_a_history_ends_strictly_before_the_request_time(spark: SparkSession) -> None:
    last = at(9, 23) + dt.timedelta(minutes=59, seconds=59, microseconds=999_999)
    events: list[Event] = [(1, 10, last, "buy", 1.0), (1, 11, at(10), "buy", 1.0)]
    histories = build_histories(events_df(spark, events), ds="2024-01-10", max_events=5, shards=4)
    assert collected(histories) == {1: [(10, us(last), "buy", 1.0)]}


def test_the_newest_are_kept_oldest_to_newest_in_a_total_order(spark: SparkSession) -> None:
    events: list[Event] = [
        (1, 30, at(5), "view", 2.0),
        (1, 30, at(5), "buy", 2.0),
        (1, 20, at(5), "view", 1.0),
        (1, 30, at(5), "buy", 1.0),
        (1, 99, at(1), "buy", 1.0),
    ]
    expected = {1: [(30, us(at(5)), "buy", 1.0), (30, us(at(5)), "buy", 2.0), (30, us(at(5)), "view", 2.0)]}
    for order in (events, events[::-1]):
        histories = build_histories(events_df(spark, order), ds="2024-01-10", max_events=3, shards=4)
        assert collected(histories) == expected


def test_exact_duplicates_count_once_and_leave_room_for_older_events(spark: SparkSession) -> None:
    events: list[Event] = [(1, 7, at(3), "buy", None)] * 3 + [(1, 6, at(2), None, 1.0)]
    histories = build_histories(events_df(spark, events), ds="2024-01-10", max_events=2, shards=4)
    assert collected(histories) == {1: [(6, us(at(2)), None, 1.0), (7, us(at(3)), "buy", None)]}


def test_events_without_user_item_or_time_are_passed_over(spark: SparkSession) -> None:
    events: list[Event] = [(None, 7, at(3), "buy", 1.0), (1, None, at(3), "buy", 1.0), (1, 7, None, "buy", 1.0)]
    assert collected(build_histories(events_df(spark, events), ds="2024-01-10", max_events=2, shards=4)) == {}


def test_neither_time_zone_nor_ansi_plays_a_part(spark: SparkSession) -> None:
    events: list[Event] = [(1, hour, at(9, hour), "buy", 1.0) for hour in range(24)]
    events.append((1, 99, at(10), "buy", 1.0))
    requests = spark.createDataFrame([("2024-01-10", 1)], "ds string, user_id bigint")
    for zone, ansi in (("Asia/Tokyo", "false"), ("America/Los_Angeles", "true")):
        with settings(spark, {"spark.sql.session.timeZone": zone, "spark.sql.ansi.enabled": ansi}):
            df = events_df(spark, events)
            for histories in (
                build_histories(df, ds="2024-01-10", max_events=30, shards=4),
                histories_at(df, requests, dates=["2024-01-10"], max_events=30),
            ):
                assert [event[0] for event in collected(histories)[1]] == list(range(24))


@pytest.mark.parametrize("ids", ["bigint", "string"])
def test_histories_of_many_days_are_those_of_each_day(spark: SparkSession, ids: str) -> None:
    id_of = int if ids == "bigint" else str
    events: list[Event] = [
        (id_of(user), id_of(step % 5), at(1 + (step * (user + 2)) % 12, step % 3), "buy", float(step % 2))
        for user in range(4)
        for step in range(14)
    ]
    dates = ["2024-01-09", "2024-01-02", "2024-01-05"]
    users = [id_of(user) for user in (0, 1, 3, 77)]
    requests = spark.createDataFrame([(ds, user) for ds in dates for user in users], f"ds string, user_id {ids}")
    got = histories_at(events_df(spark, events, ids=ids), requests, dates=dates, max_events=4)
    by_request = got.selectExpr("struct(ds, user_id) AS user_id", "history")
    assert collected(by_request) == {
        (ds, user): newest(events, user=user, before_us=request_time_us(ds), max_events=4)
        for ds in dates
        for user in users
    }


def test_what_is_deleted_and_inserted_unchanged_cancels_out(spark: SparkSession) -> None:
    rows = [
        (1, 7, at(3), "buy", 1.0, "delete"),
        (1, 7, at(3), "buy", 1.0, "insert"),
        (1, 8, at(3), "buy", 1.0, "update_preimage"),
        (1, 8, at(3), "buy", 2.0, "update_postimage"),
        (2, 9, at(3), "buy", 1.0, "insert"),
        (2, 9, at(20), "buy", 1.0, "delete"),
    ]
    changes = spark.createDataFrame(
        rows, "user_id bigint, item_id bigint, event_ts timestamp, action string, value double, _change_type string"
    )
    net = net_changes(changes, before_us=request_time_us("2024-01-10")).collect()
    assert {(r["user_id"], r["item_id"], r["value"], r["copies"]) for r in net} == {
        (1, 8, 1.0, -1),
        (1, 8, 2.0, 1),
        (2, 9, 1.0, 1),
    }


def test_a_shard_is_a_pure_function_of_the_user(spark: SparkSession) -> None:
    df = spark.range(1000).withColumn("shard", shard_of("id", shards=16))
    shards = [row["shard"] for row in df.orderBy("id").collect()]
    assert set(shards) == set(range(16))
    again = spark.range(1000).repartition(7, "id").withColumn("shard", shard_of("id", shards=16))
    assert [row["shard"] for row in again.orderBy("id").collect()] == shards
    assert df.schema["shard"].dataType.simpleString() == "int"
