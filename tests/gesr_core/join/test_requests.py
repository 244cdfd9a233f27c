"""Request rows and item features by hand: what is dropped, what is kept, what lies before the request time."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pyspark.sql import SparkSession

from gesr_core.config import FeaturesConfig
from gesr_core.join.items import items_at
from gesr_core.join.requests import build_requests, training_requests, users_at

pytestmark = pytest.mark.spark

DS = "2024-03-10"
CANDIDATE = "array<struct<item_id:bigint,source:string,retrieval_score:double>>"
EVENT = "array<struct<item_id:bigint,event_ts:timestamp,action:string,value:double>>"


def at(day: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(2024, 3, day, hour, tzinfo=dt.timezone.utc)


def requests(
    spark: SparkSession, candidates: list[Any], *, max_candidates: int = 3, window_days: int | None = None
) -> dict[Any, list[Any]]:
    histories = [(1, [(7, at(8), "buy", 2.0), (9, at(9), "view", None)])]
    rows = build_requests(
        spark.createDataFrame(candidates, f"user_id bigint, candidates {CANDIDATE}"),
        spark.createDataFrame(histories, f"user_id bigint, history {EVENT}"),
        spark.createDataFrame([(1, "A")], "user_id bigint, user_age string"),
        shards=4,
        ds=DS,
        history_window_days=window_days,
        max_candidates_per_request=max_candidates,
        user_features=["age"],
    )
    found: dict[Any, list[Any]] = {}
    for row in sorted(rows.collect(), key=lambda row: row["request"]):
        found.setdefault(row["user_id"], []).append(row)
    return found


def test_a_request_holds_the_history_once_and_the_candidates_sorted(spark: SparkSession) -> None:
    [row] = requests(spark, [(1, [(5, "own", 0.1), (2, "als", 0.2)])])[1]
    assert row["candidate_item_id"] == [2, 5]
    assert (row["history_item_id"], row["history_action"]) == ([7, 9], ["buy", "view"])
    assert row["history_time_s"] == [int(at(8).timestamp()), int(at(9).timestamp())]
    assert row["history_value"] == [2.0, None]
    assert (row["user_age"], row["rejected"], row["candidates_in"]) == ("A", [], 2)


def test_a_user_with_more_candidates_becomes_several_requests(spark: SparkSession) -> None:
    rows = requests(spark, [(1, [(item, "own", 0.0) for item in (9, 8, 7, 6, 5, 4, 3)]), (1, [(1, "own", 0.0)])])[1]
    assert [row["candidate_item_id"] for row in rows] == [[1, 3, 4], [5, 6, 7], [8, 9]]
    assert [row["candidates_in"] for row in rows] == [8, 0, 0]
    assert all(row["history_item_id"] == [7, 9] for row in rows)


def test_what_cannot_be_scored_is_rejected_with_its_reason(spark: SparkSession) -> None:
    found = requests(
        spark,
        [
            (2, [(5, "own", 0.1), (5, "als", 0.1), (None, "own", 0.1), (4, "own", 0.1)]),
            (3, []),
            (4, None),
            (None, [(6, "own", 0.0)]),
        ],
    )
    reasons = {user: [(e["item_id"], e["reason"]) for e in rows[0]["rejected"]] for user, rows in found.items()}
    assert reasons == {
        2: [(5, "duplicate_candidate"), (None, "null_item_id")],
        3: [(None, "no_candidates")],
        4: [(None, "no_candidates")],
        None: [(6, "null_user_id")],
    }
    assert found[2][0]["candidate_item_id"] == [4, 5]
    assert found[2][0]["history_item_id"] == []
    assert [found[user][0]["candidate_item_id"] for user in (3, 4, None)] == [[], [], []]
    assert {user: rows[0]["candidates_in"] for user, rows in found.items()} == {2: 4, 3: 0, 4: 0, None: 1}


@pytest.mark.parametrize(("window_days", "kept"), [(None, [7, 9]), (2, [7, 9]), (1, [9])])
def test_a_window_leaves_older_events_out_of_every_request(
    spark: SparkSession, window_days: int | None, kept: list[int]
) -> None:
    rows = requests(spark, [(1, [(5, "own", 0.1)] * 1), (3, [(5, "own", 0.1)])], window_days=window_days)
    assert [row["history_item_id"] for row in rows[1]] == [kept]
    assert [row["history_item_id"] for row in rows[3]] == [[]]


def test_training_requests_keep_labels_beside_their_candidates(spark: SparkSession) -> None:
    ids = "ds string, user_id bigint, item_id bigint, shown_ts timestamp"
    columns = f"{ids}, sampling_rate float, sampling_weight float, exposed boolean, label_a int"
    impressions = [(DS, 1, 8, at(10), 0.5, 2.0, True, 1), (DS, 1, 3, at(10), 0.25, 2.0, False, 0)]
    rows = training_requests(
        spark.createDataFrame(impressions, columns),
        spark.createDataFrame(
            [(1, [(5, at(8), "buy", 1.0), (7, at(9), "buy", 2.0)])], f"user_id bigint, history {EVENT}"
        ),
        spark.createDataFrame([], "user_id bigint, user_age string"),
        ds=DS,
        history_window_days=1,
        tasks=["a"],
        user_features=["age"],
    )
    [row] = rows.collect()
    assert (row["candidate_item_id"], row["label_a"], row["exposed"]) == ([3, 8], [0, 1], [False, True])
    assert row["sampling_weight"] == [2.0, 2.0]
    assert (row["sampling_rate"], row["history_item_id"], row["user_age"]) == ([0.25, 0.5], [7], None)


def test_features_hold_from_their_valid_from_on_and_only_before_the_request_time(spark: SparkSession) -> None:
    rows = [(1, "old", at(1)), (1, "new", at(9, 23)), (1, "future", at(10)), (2, "future", at(11))]
    users = spark.createDataFrame(rows, "user_id bigint, age string, valid_from timestamp")
    assert [tuple(row) for row in users_at(users, ds=DS, features=["age"]).collect()] == [(1, "new")]


@pytest.mark.parametrize("element", ["bigint", "string"])
def test_a_users_list_becomes_a_list_of_texts_without_nulls(spark: SparkSession, element: str) -> None:
    numbers: list[Any] = [(1, [2**53 + 1, None, 4]), (2, []), (3, None)]
    users = spark.createDataFrame(numbers, "user_id bigint, topics array<bigint>")
    users = users.withColumn("topics", users["topics"].cast(f"array<{element}>"))
    rows = {row["user_id"]: row["user_topics"] for row in users_at(users, ds=DS, features=["topics"]).collect()}
    assert rows == {1: ["9007199254740993", "4"], 2: [], 3: None}


def test_item_statistics_count_only_what_lay_before_the_request_time(spark: SparkSession) -> None:
    features = FeaturesConfig.model_validate(
        {
            "item": [{"name": "kind", "kind": "categorical"}],
            "item_statistics": [
                {"name": "buyers_7d", "kind": "users", "window_days": 7},
                {"name": "sales", "kind": "events"},
                {"name": "price", "kind": "mean_value"},
                {"name": "age", "kind": "days_since_first"},
                {"name": "rest", "kind": "days_since_last"},
                {"name": "loyal", "kind": "repeat_share"},
                {"name": "loyal_1d", "kind": "repeat_share", "window_days": 1},
            ],
        }
    )
    events = [
        (1, 5, at(1), "buy", 3.0),
        (1, 5, at(8), "buy", 0.1),
        (1, 5, at(9), "buy", float("nan")),
        (2, 5, at(9, 12), "buy", 0.2),
        (4, 5, at(9, 1), "buy", None),
        (4, 5, at(9, 23), "buy", None),
        (4, 7, at(8), "buy", None),
        (3, 5, at(10), "buy", 1000.0),
    ]
    rows = items_at(
        spark.createDataFrame([(5, "x"), (6, None)], "item_id bigint, kind string"),
        spark.createDataFrame(
            events, "user_id bigint, item_id bigint, event_ts timestamp, action string, value double"
        ),
        ds=DS,
        features=features,
    )
    known, unsold = sorted(tuple(row) for row in rows.collect())
    # User 1 was there on three dates, users 2 and 4 on one; within one day nobody on two.
    assert known == (5, "x", 3.0, 6.0, pytest.approx(1.1), 9.0, pytest.approx(1 / 24), pytest.approx(1 / 3), 0.0)
    assert unsold == (6, None, 0.0, 0.0, None, None, None, None, None)
