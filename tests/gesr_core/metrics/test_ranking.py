"""Orderings of candidates, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from gesr_core.metrics.ranking import one_row_per_user, retrieval_order, sources_of, top_item, usable_candidates

pytestmark = pytest.mark.spark

CANDIDATES = "user_id bigint, candidates array<struct<item_id:bigint,source:string,retrieval_score:double>>"


def pairs_df(spark: SparkSession, user_items: Sequence[tuple[int, int]]) -> DataFrame:
    return spark.createDataFrame(list(user_items), "user_id bigint, item_id bigint")


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


def test_the_top_item_is_the_one_with_most_buyers_then_the_smallest(spark: SparkSession) -> None:
    assert top_item(pairs_df(spark, [(1, 7), (2, 7), (1, 5), (2, 5), (1, 9)])) == 5
    assert top_item(pairs_df(spark, [])) is None
