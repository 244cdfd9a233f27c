"""Ranking metrics by hand, and against a plain numpy reference on random data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.metrics.ranking import (
    ALL,
    WITHOUT_TOP_ITEM,
    Metric,
    measure_calibration,
    measure_pairs,
    measure_rankings,
    one_row_per_user,
    ordered_by,
    retrieval_order,
    top_item,
)

pytestmark = pytest.mark.spark

CANDIDATES = "user_id bigint, candidates array<struct<item_id:bigint,source:string,retrieval_score:double>>"


def pairs_df(spark: SparkSession, user_items: Sequence[tuple[int, int]]) -> DataFrame:
    return spark.createDataFrame(list(user_items), "user_id bigint, item_id bigint")


def tops_df(spark: SparkSession, tops: Sequence[tuple[int, str, list[int]]]) -> DataFrame:
    return spark.createDataFrame(list(tops), "user_id bigint, ordering string, items array<bigint>")


def by_name(metrics: Sequence[Metric]) -> dict[tuple[str, str, int | None], float]:
    return {(m.ordering, m.metric, m.k): m.value for m in metrics}


def test_sources_take_turns_and_a_duplicate_stands_at_its_first_place(spark: SparkSession) -> None:
    candidates = [(10, "b", 0.1), (11, "b", 0.9), (20, "a", 1.0), (11, "a", 5.0), (21, "a", 1.0), (12, "b", None)]
    df = one_row_per_user(spark.createDataFrame([(1, candidates[:3]), (1, candidates[3:])], CANDIDATES))
    # a: 11, 20, 21 (a tie: the smaller id first); b: 11, 10, 12 (no score: last)
    assert retrieval_order(df, sources=["a", "b"]).collect()[0]["items"] == [11, 20, 10, 21, 12]


def test_a_candidate_without_source_keeps_its_place_and_one_without_item_has_none(spark: SparkSession) -> None:
    df = one_row_per_user(spark.createDataFrame([(1, [(5, None, 1.0), (6, "a", 2.0), (None, "a", 9.0)])], CANDIDATES))
    assert retrieval_order(df, sources=["", "a"]).collect()[0]["items"] == [5, 6]


def test_ties_go_to_the_smaller_item(spark: SparkSession) -> None:
    scored = pairs_df(spark, [(1, 9), (1, 3), (1, 5), (1, 4)]).withColumn("value", F.col("item_id") % 2 * 1.0)
    assert ordered_by(scored, limit=3).collect()[0]["items"] == [3, 5, 9]


def test_the_top_item_is_the_one_with_most_buyers_then_the_smallest(spark: SparkSession) -> None:
    assert top_item(pairs_df(spark, [(1, 7), (2, 7), (1, 5), (2, 5), (1, 9)])) == 5
    assert top_item(pairs_df(spark, [])) is None


def test_recall_and_ndcg_by_hand(spark: SparkSession) -> None:
    # User 1 bought three items, of which 50 was never retrieved; user 2 one that stands third; user 3 none retrieved.
    truth = pairs_df(spark, [(1, 10), (1, 11), (1, 50), (2, 12), (3, 60)])
    retrieved = pairs_df(spark, [(1, 10), (1, 11), (2, 12)])
    tops = tops_df(spark, [(1, "model", [10, 99, 11]), (2, "model", [97, 98, 12])])
    found = list(measure_rankings(tops, truth, retrieved, ks=[2, 3], without=None))
    assert {m.segment for m in found} == {ALL}
    got = by_name(found)
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    assert got == pytest.approx(
        {
            ("model", "recall", 2): (1 / 3 + 0 + 0) / 3,
            ("model", "recall", 3): (2 / 3 + 1 + 0) / 3,
            ("model", "ndcg", 2): (1 / (1 + second) + 0 + 0) / 3,
            ("model", "ndcg", 3): ((1 + third) / (1 + second + third) + third + 0) / 3,
            # Among retrieved positives: the two users who have one.
            ("model", "recall_of_retrieved", 2): (1 / 2 + 0) / 2,
            ("model", "recall_of_retrieved", 3): (1 + 1) / 2,
            ("model", "ndcg_of_retrieved", 2): (1 / (1 + second) + 0) / 2,
            ("model", "ndcg_of_retrieved", 3): ((1 + third) / (1 + second) + third) / 2,
        }
    )


def test_without_an_item_the_next_ones_move_up(spark: SparkSession) -> None:
    truth = pairs_df(spark, [(1, 7), (1, 8), (2, 7)])
    tops = tops_df(spark, [(1, "model", [7, 8]), (2, "model", [7, 8])])
    found = list(measure_rankings(tops, truth, truth, ks=[1], without=7))
    assert {m.segment for m in found} == {WITHOUT_TOP_ITEM}
    assert by_name(found)["model", "recall", 1] == 1.0
    # User 2 bought nothing else and is no longer counted.
    assert {m.n for m in found} == {1}


def test_an_interval_holds_its_mean_and_needs_two_users(spark: SparkSession) -> None:
    truth = pairs_df(spark, [(user, user % 3) for user in range(30)])
    tops = tops_df(spark, [(user, "model", [0, 1]) for user in range(30)])
    metric = next(m for m in measure_rankings(tops, truth, truth, ks=[1], without=None) if m.metric == "recall")
    assert metric.value == pytest.approx(1 / 3)
    assert metric.ci_low is not None
    assert metric.ci_high is not None
    half = 1.96 * math.sqrt(30 / 29 * (1 / 3) * (2 / 3) / 30)
    assert (metric.ci_low, metric.ci_high) == pytest.approx((1 / 3 - half, 1 / 3 + half))


def test_pair_metrics_agree_with_a_plain_reference(spark: SparkSession) -> None:
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, 12, 400), rng.integers(0, 40, 400)
    keys = sorted(set(zip(users.tolist(), items.tolist(), strict=True)))
    labels = (rng.random(len(keys)) < 0.2).astype(int)
    # Many ties, both signs, some magnitudes.
    values = {
        "model": np.round(rng.normal(size=len(keys)), 1) + labels * 0.4,
        "popularity": rng.integers(0, 5, len(keys)).astype(float),
        "random": rng.integers(-(2**62), 2**62, len(keys)).astype(float),
        "retrieval_order": -rng.integers(1, 30, len(keys)).astype(float),
    }
    rows = [
        (user, item, int(labels[i]), float(values["model"][i]), ordering, float(of[i]))
        for ordering, of in values.items()
        for i, (user, item) in enumerate(keys)
    ]
    schema = "user_id bigint, item_id bigint, label int, logit float, ordering string, value double"
    df = spark.createDataFrame(rows, schema)
    for without in (None, 7):
        keep = np.array([item != without for _, item in keys])
        group = np.array([user for user, _ in keys])[keep]
        got = by_name([*measure_pairs(df, without=without), *measure_calibration(_model(df), without=without)])
        expected: dict[tuple[str, str, int | None], float] = {}
        for ordering, of in values.items():
            expected[ordering, "auc", None] = _auc(labels[keep], of[keep])
            expected[ordering, "gauc", None] = _gauc(labels[keep], of[keep], group)
        expected["model", "ne", None] = _ne(labels[keep], values["model"][keep])
        expected["model", "base_rate", None] = float(labels[keep].mean())
        assert got == pytest.approx(expected, rel=1e-6)


def test_one_class_alone_has_no_auc_and_no_ne(spark: SparkSession) -> None:
    schema = "user_id bigint, item_id bigint, label int, logit float, ordering string, value double"
    df = spark.createDataFrame([(1, 1, 0, 0.5, "model", 0.5), (1, 2, 0, 0.1, "model", 0.1)], schema)
    assert [*measure_pairs(df, without=None), *measure_calibration(df, without=None)] == []


def _model(df: DataFrame) -> DataFrame:
    return df.where("ordering = 'model'")


def _auc(labels: Any, values: Any) -> float:
    positive, negative = values[labels == 1], values[labels == 0]
    won = (positive[:, None] > negative[None, :]).sum() + 0.5 * (positive[:, None] == negative[None, :]).sum()
    return float(won / (len(positive) * len(negative)))


def _gauc(labels: Any, values: Any, group: Any) -> float:
    weights: Mapping[int, int] = {
        int(u): int((group == u).sum()) for u in set(group.tolist()) if 0 < labels[group == u].mean() < 1
    }
    total = sum(weights.values())
    return sum(w * _auc(labels[group == u], values[group == u]) for u, w in weights.items()) / total


def _ne(labels: Any, logits: Any) -> float:
    p = 1 / (1 + np.exp(-np.float32(logits).astype(float)))
    loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
    rate = labels.mean()
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))
