"""Recall of candidates and the summary of impressions, counted by hand."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from gesr_core.metrics.retrieval_report import RetrievalRecall, retrieval_recall, summarise_impressions

pytestmark = pytest.mark.spark


def test_recall_is_over_users_with_candidates_and_at_least_one_pair(spark: SparkSession) -> None:
    candidates = spark.createDataFrame(
        [(1, [(10,), (11,)]), (2, [(10,)]), (3, [(12,)])],
        "user_id bigint, candidates array<struct<item_id: bigint>>",
    )
    # User 1 has 1 of 2, user 2 has 1 of 1, user 4 has no candidates; user 3 wanted nothing.
    wanted = spark.createDataFrame([(1, 10), (1, 99), (2, 10), (4, 10)], "user_id bigint, item_id bigint")
    assert retrieval_recall(candidates, wanted) == RetrievalRecall(
        users=2, pairs=3, mean_per_user=0.75, of_all_pairs=2 / 3, users_without_candidates=1
    )


def test_recall_of_nothing_is_zero(spark: SparkSession) -> None:
    candidates = spark.createDataFrame([], "user_id bigint, candidates array<struct<item_id: bigint>>")
    wanted = spark.createDataFrame([], "user_id bigint, item_id bigint")
    assert retrieval_recall(candidates, wanted) == RetrievalRecall(0, 0, 0.0, 0.0, 0)


def test_a_base_rate_is_that_before_negatives_were_thinned_out(spark: SparkSession) -> None:
    # A labelled candidate, a negative that stands for four, and two of another user that stand for eight: 1 of 21.
    rows = [("d", 1, True, 0.25, 1.0, 1), ("d", 1, True, 0.25, 1.0, 0)]
    rows += [("d", 2, True, 0.25, 2.0, 0), ("d", 2, True, 0.25, 2.0, 0), ("d", 2, False, 0.001, 2.0, 0)]
    impressions = spark.createDataFrame(
        rows, "ds string, user_id bigint, exposed boolean, sampling_rate float, sampling_weight float, label_bought int"
    )
    assert summarise_impressions(impressions, labels=["label_bought"]) == [
        "d: 2 users, 4 exposed, 1 unexposed; label_bought 1 (base rate 0.04762)"
    ]
