"""Impressions of given candidates: labels, draws by hash, sampling rates."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pyspark.sql import DataFrame, Row, SparkSession, functions as F

from gesr_core.config import ImpressionsConfig, LabelsConfig, Task
from gesr_core.dates import request_time, request_time_us, shift_ds
from gesr_core.join.impressions import build_impressions, sample_users, uniform

pytestmark = pytest.mark.spark

DS = "2024-01-10"
USERS, CATALOGUE, CANDIDATES = 300, 40, 10
TASKS = [Task(name="bought", actions=["buy"], score_weight=1.0)]
RATES = {"user_rate": 1.0, "unlabelled_user_rate": 1.0, "negative_rate": 0.25}
SETTINGS = ImpressionsConfig(dates=2, step_days=7, unexposed_items=2, seed=3, **RATES)


def first_seen(item: int) -> int:
    """Items 1 to 40 are known on DS; item 41 appears on the day."""
    return request_time_us(DS) - (1 if item <= CATALOGUE else 0)


def built(
    spark: SparkSession, *, ids: str = "bigint", settings: ImpressionsConfig = SETTINGS, ds: str = DS
) -> list[Row]:
    """User u has the candidates 1 to 10; users divisible by 10 bought item 3, item 30 and the new item 41."""
    as_id = int if ids == "bigint" else str
    users = spark.range(USERS).select(F.lit(ds).alias("ds"), F.col("id").cast(ids).alias("user_id"))
    items = F.transform(F.sequence(F.lit(1), F.lit(CANDIDATES)), lambda i: F.struct(i.cast(ids).alias("item_id")))
    events = [
        (as_id(user), as_id(item), request_time(ds) + dt.timedelta(days=1), "buy", 1.0)
        for user in range(0, USERS, 10)
        for item in (3, 30, CATALOGUE + 1)
    ]
    catalogue = [(as_id(item), first_seen(item)) for item in range(1, CATALOGUE + 2)]
    return build_impressions(
        users.withColumn("candidates", items),
        spark.createDataFrame(events, f"user_id {ids}, item_id {ids}, event_ts timestamp, action string, value double"),
        users=users.withColumn("sampling_weight", F.col("user_id").cast("double") + 1.0),
        items=spark.createDataFrame(catalogue, f"item_id {ids}, first_us bigint"),
        dates=[ds],
        labels=LabelsConfig(window_days=7, tasks=TASKS),
        settings=settings,
    ).collect()


def keys(rows: list[Row]) -> set[tuple[int, int]]:
    return {(int(row["user_id"]), int(row["item_id"])) for row in rows}


def test_labelled_candidates_stay_and_what_was_not_retrieved_was_not_shown(spark: SparkSession) -> None:
    rows = built(spark)
    assert keys([row for row in rows if row["label_bought"]]) == {(user, 3) for user in range(0, USERS, 10)}
    assert all(row["exposed"] for row in rows if row["label_bought"])
    bought = {(user, item) for user in range(0, USERS, 10) for item in (30, 41)}
    assert not keys(rows) & bought
    assert len(keys(rows)) == len(rows)


def test_negatives_are_kept_at_their_rate(spark: SparkSession) -> None:
    exposed = [row for row in built(spark) if row["exposed"]]
    negatives = [row for row in exposed if not row["label_bought"]]
    pairs = USERS * CANDIDATES - USERS // 10
    # four standard deviations
    assert abs(len(negatives) / pairs - 0.25) < 4 * (0.25 * 0.75 / pairs) ** 0.5
    assert {row["sampling_rate"] for row in exposed} == {0.25}


def test_unexposed_items_come_from_the_rest_of_the_catalogue(spark: SparkSession) -> None:
    unexposed = [row for row in built(spark) if not row["exposed"]]
    per_user = {user: sum(int(row["user_id"]) == user for row in unexposed) for user in range(USERS)}
    assert set(per_user.values()) == {2}
    # No candidate, and not item 41, which is not known yet; every other one is drawn by somebody.
    assert {row["item_id"] for row in unexposed} == set(range(CANDIDATES + 1, CATALOGUE + 1))
    assert all(row["sampling_rate"] == pytest.approx(2 / 30) for row in unexposed)
    assert {row["label_bought"] for row in unexposed} == {0}


def test_rows_bear_the_request_time(spark: SparkSession) -> None:
    row = built(spark)[0]
    assert row["ds"] == DS
    # What Spark hands to Python is in the machine's own time zone.
    assert row["shown_ts"].astimezone(dt.timezone.utc) == request_time(DS)


def test_rows_bear_the_weight_of_their_user(spark: SparkSession) -> None:
    assert all(row["sampling_weight"] == row["user_id"] + 1 for row in built(spark))


def test_draws_are_a_function_of_seed_date_and_ids(spark: SparkSession) -> None:
    first = built(spark)
    assert keys(built(spark)) == keys(first)
    assert keys(built(spark, ids="string")) == keys(first)
    assert keys(built(spark, settings=SETTINGS.model_copy(update={"seed": 4}))) != keys(first)
    assert keys(built(spark, ds=shift_ds(DS, days=7))) != keys(first)


def test_without_unexposed_items_every_impression_is_a_candidate(spark: SparkSession) -> None:
    rows = built(spark, settings=SETTINGS.model_copy(update={"unexposed_items": 0, "negative_rate": 1.0}))
    assert keys(rows) == {(user, item) for user in range(USERS) for item in range(1, CANDIDATES + 1)}


def test_a_sample_of_users_differs_from_date_to_date(spark: SparkSession) -> None:
    settings = SETTINGS.model_copy(update={"user_rate": 0.5})
    kept = []
    for ds in (DS, DS, "2024-01-17"):
        users = spark.range(1000).select(F.lit(ds).alias("ds"), F.col("id").alias("user_id"))
        kept.append({row["user_id"] for row in sample_users(users, users, settings=settings).collect()})
    assert kept[0] == kept[1] != kept[2]
    assert all(abs(len(users) - 500) < 4 * 250**0.5 for users in kept)


def test_users_without_a_label_are_thinned_out_and_those_kept_stand_for_all(spark: SparkSession) -> None:
    users = spark.range(4000).select(F.lit(DS).alias("ds"), F.col("id").alias("user_id"))
    # Twice, as a user with two labelled items; and one whom nobody asked about.
    bought = [(DS, user) for user in (*range(0, 4000, 10), 0, 9999)]
    labelled = spark.createDataFrame(bought, "ds string, user_id bigint")
    settings = SETTINGS.model_copy(update={"user_rate": 0.5, "unlabelled_user_rate": 0.2})
    sample = sample_users(users, labelled, settings=settings).collect()
    weights = {row["user_id"]: row["sampling_weight"] for row in sample}
    assert len(weights) == len(sample)
    every = {row["user_id"] for row in sample_users(users, users, settings=settings).collect()}
    with_label = {user for user in weights if user % 10 == 0}
    assert with_label == {user for user in every if user % 10 == 0}
    assert {weights[user] for user in with_label} == {1.0}
    others = [weight for user, weight in weights.items() if user % 10]
    assert set(others) == {5.0}
    assert set(weights) <= every
    # 1800 users stood to be drawn, each with probability 0.2: four standard deviations of the sum of weights.
    drawn = len(every) - len(with_label)
    assert abs(sum(others) - drawn) < 4 * (drawn * 0.2 * 0.8) ** 0.5 * 5


def test_uniform_numbers_fill_the_unit_interval(spark: SparkSession) -> None:
    df: DataFrame = spark.range(4000).select(uniform(F.lit("key"), F.col("id")).alias("u"))
    row: Any = df.agg(F.min("u"), F.max("u"), F.avg("u")).first()
    assert 0 <= row[0] < 0.01
    assert 0.99 < row[1] < 1
    assert abs(row[2] - 0.5) < 0.02
