"""Ranking metrics by hand, and against a plain numpy reference on random data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from gesr_core.metrics.ranking import (
    ALL,
    ORDERINGS,
    WITHOUT_TOP_ITEM,
    Metric,
    measure_auc,
    measure_calibration,
    measure_gauc,
    measure_rankings,
    one_row_per_user,
    rank_positives,
    retrieval_order,
    sources_of,
    top_item,
    usable_candidates,
)

pytestmark = pytest.mark.spark

PAIRS = ", ".join(["user_id bigint, item_id bigint, label int, logit float", *(f"{name} double" for name in ORDERINGS)])
CANDIDATES = "user_id bigint, candidates array<struct<item_id:bigint,source:string,retrieval_score:double>>"


def pairs_df(spark: SparkSession, user_items: Sequence[tuple[int, int]]) -> DataFrame:
    return spark.createDataFrame(list(user_items), "user_id bigint, item_id bigint")


def rankings(
    spark: SparkSession,
    truth: Sequence[tuple[int, int]],
    tops: Mapping[int, list[int]],
    *,
    ks: list[int],
    published_k: int = 100,
    top: int | None = None,
    segment: str = ALL,
) -> list[Metric]:
    """Metrics of the model's ordering of each user's candidates, given best first."""
    rows = [
        (user, item, int((user, item) in truth), *(-float(place) for _ in ORDERINGS))
        for user, items in tops.items()
        for place, item in enumerate(items)
    ]
    schema = ", ".join(["user_id bigint, item_id bigint, label int", *(f"{name} double" for name in ORDERINGS)])
    ranks = rank_positives(spark.createDataFrame(rows, schema), top=top)
    segments = [ALL, WITHOUT_TOP_ITEM]
    measured = measure_rankings(
        pairs_df(spark, truth), ranks, ks=ks, published_k=published_k, segments=segments, top=top
    )
    return [m for m in measured if m.segment == segment and m.ordering == "model"]


def by_name(metrics: Sequence[Metric]) -> dict[tuple[str, str, int | None], float]:
    return {(m.ordering, m.metric, m.k): m.value for m in metrics}


def usable(spark: SparkSession, rows: list[Any]) -> DataFrame:
    return usable_candidates(spark.createDataFrame(rows, CANDIDATES))


def test_sources_take_turns_and_a_duplicate_stands_at_its_first_place(spark: SparkSession) -> None:
    candidates = [(10, "b", 0.1), (11, "b", 0.9), (20, "a", 1.0), (11, "a", 5.0), (21, "a", 1.0), (12, "b", None)]
    df = one_row_per_user(usable(spark, [(1, candidates[:3]), (1, candidates[3:])]))
    # a: 11, 20, 21 (a tie: the smaller id first); b: 11, 10, 12 (no score: last)
    assert retrieval_order(df, sources=["a", "b"]).collect()[0]["items"] == [11, 20, 10, 21, 12]


def test_a_candidate_without_source_keeps_its_place_and_one_without_item_has_none(spark: SparkSession) -> None:
    df = usable(spark, [(1, [(5, None, 1.0), (6, "a", 2.0), (None, "a", 9.0)]), (None, [(7, "c", 1.0)])])
    assert sources_of(df) == ["", "a"]
    assert retrieval_order(df, sources=["", "a"]).collect()[0]["items"] == [5, 6]


def test_ties_go_to_the_smaller_item_and_no_value_has_no_rank(spark: SparkSession) -> None:
    rows = [(1, item, 1, value, 0.0, -float(item), 1.0) for item, value in ((9, 5.0), (3, 5.0), (4, 7.0), (8, None))]
    schema = ", ".join(["user_id bigint, item_id bigint, label int", *(f"{name} double" for name in ORDERINGS)])
    ranked = rank_positives(spark.createDataFrame(rows, schema), top=3).collect()
    of_model = {r["item_id"]: (r["rank"], r["rank_without"]) for r in ranked if r["ordering"] == "model"}
    assert of_model == {4: (1, 1), 3: (2, 2), 9: (3, 2), 8: (None, None)}
    assert {r["item_id"]: r["rank"] for r in ranked if r["ordering"] == "random"} == {3: 1, 4: 2, 8: 3, 9: 4}


def test_the_top_item_is_the_one_with_most_buyers_then_the_smallest(spark: SparkSession) -> None:
    assert top_item(pairs_df(spark, [(1, 7), (2, 7), (1, 5), (2, 5), (1, 9)])) == 5
    assert top_item(pairs_df(spark, [])) is None


def test_recall_and_ndcg_by_hand(spark: SparkSession) -> None:
    # User 1 bought three items, of which 50 was never retrieved; user 2 one that stands third; user 3 none retrieved.
    truth = [(1, 10), (1, 11), (1, 50), (2, 12), (3, 60)]
    got = by_name(rankings(spark, truth, {1: [10, 99, 11], 2: [97, 98, 12]}, ks=[2, 3]))
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
    truth = [(1, 7), (1, 8), (2, 7)]
    found = rankings(spark, truth, {1: [7, 8], 2: [7, 8]}, ks=[1], top=7, segment=WITHOUT_TOP_ITEM)
    assert by_name(found)["model", "recall", 1] == 1.0
    # User 2 bought nothing else and is no longer counted.
    assert {m.n for m in found} == {1}


def test_what_was_not_published_does_not_move_up(spark: SparkSession) -> None:
    found = rankings(spark, [(1, 8)], {1: [7, 8]}, ks=[1], published_k=1, top=7, segment=WITHOUT_TOP_ITEM)
    assert by_name(found)["model", "recall", 1] == 0.0


def test_an_interval_holds_its_mean_and_needs_two_users(spark: SparkSession) -> None:
    users = {user: [0, 1] for user in range(30)}
    metric = next(m for m in rankings(spark, [(u, u % 3) for u in users], users, ks=[1]) if m.metric == "recall")
    half = 1.96 * math.sqrt(30 / 29 * (1 / 3) * (2 / 3) / 30)
    assert (metric.value, metric.ci_low, metric.ci_high) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half))
    alone = rankings(spark, [(1, 0)], {1: [0]}, ks=[1])[0]
    assert (alone.ci_low, alone.ci_high) == (None, None)


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
        (user, item, int(labels[i]), float(values["model"][i]), *(float(values[name][i]) for name in ORDERINGS))
        for i, (user, item) in enumerate(keys)
    ]
    df = spark.createDataFrame(rows, PAIRS)
    metrics = [
        metric
        for measure in (measure_gauc, measure_auc, measure_calibration)
        for metric in measure(df, segments=[ALL, WITHOUT_TOP_ITEM], top=7)
    ]
    for segment in (ALL, WITHOUT_TOP_ITEM):
        keep = np.array([segment == ALL or item != 7 for _, item in keys])
        group = np.array([user for user, _ in keys])[keep]
        expected: dict[tuple[str, str, int | None], float] = {}
        for ordering, of in values.items():
            expected[ordering, "auc", None] = _auc(labels[keep], of[keep])
            expected[ordering, "gauc", None] = _gauc(labels[keep], of[keep], group)
        expected["model", "ne", None] = _ne(labels[keep], values["model"][keep])
        expected["model", "base_rate", None] = float(labels[keep].mean())
        got = by_name([metric for metric in metrics if metric.segment == segment])
        assert got == pytest.approx(expected, rel=1e-6)


def test_one_class_alone_has_no_auc_and_no_ne(spark: SparkSession) -> None:
    df = spark.createDataFrame([(1, 1, 0, 0.5, 0.5, 0.0, 0.0, 0.0), (1, 2, 0, 0.1, 0.1, 0.0, 0.0, 0.0)], PAIRS)
    for measure in (measure_gauc, measure_auc, measure_calibration):
        assert list(measure(df, segments=[ALL], top=None)) == []


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
