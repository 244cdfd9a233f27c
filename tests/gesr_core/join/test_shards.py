"""Shards that hold far more pairs than others are cut into parts, the same in every run."""

from __future__ import annotations

from collections import Counter

import pytest
from pyspark.sql import SparkSession, functions as F

from gesr_core.join.shards import MOST_PARTS, balanced_parts, pairs_per_shard, part_of, shard_of


def test_parts_come_near_the_mean_of_the_shards() -> None:
    # A shard ten times the seven others: the mean is 2,125 pairs.
    pairs = {**dict.fromkeys(range(7), 1_000), 7: 10_000}
    parts = balanced_parts(pairs, shards=8, least=10)
    assert parts == {7: 5}
    assert pairs[7] / parts[7] == pytest.approx(sum(pairs.values()) / 8, rel=0.1)


@pytest.mark.parametrize(
    ("pairs", "least"),
    [({0: 1_000, 1: 1_400, 2: 900}, 10), ({0: 1_000, 1: 10_000}, 10_000), ({}, 10)],
    ids=["even", "too few to be worth it", "none"],
)
def test_what_need_not_be_cut_stays_whole(pairs: dict[int, int], least: int) -> None:
    assert balanced_parts(pairs, shards=3, least=least) == {}


def test_parts_have_a_bound() -> None:
    assert balanced_parts({0: 10**9}, shards=10**6, least=1) == {0: MOST_PARTS}


@pytest.mark.spark
def test_a_user_is_in_one_part_and_parts_are_even(spark: SparkSession) -> None:
    parts = {1: 4, 2: 3}
    shard = shard_of("id", shards=3)
    users = spark.range(9_000).select("id", shard.alias("shard"), part_of("id", shard=shard, parts=parts).alias("part"))
    found = Counter((row["shard"], row["part"]) for row in users.collect())
    assert set(found) == {(0, 0), *((1, part) for part in range(4)), *((2, part) for part in range(3))}
    for (shard_number, _), users_in_it in found.items():
        assert users_in_it == pytest.approx(3_000 / parts.get(shard_number, 1), rel=0.15)
    again = spark.range(9_000).repartition(5).select("id", part_of("id", shard=shard, parts=parts).alias("part"))
    assert again.exceptAll(users.select("id", "part")).count() == 0
    uncut = spark.range(9).select(part_of("id", shard=shard, parts={}).alias("part"))
    assert {(row["part"]) for row in uncut.collect()} == {0}


@pytest.mark.spark
def test_pairs_are_counted_by_shard(spark: SparkSession) -> None:
    rows = [(1, [10, 11]), (1, [12]), (2, []), (3, None), (None, [13])]
    candidates = spark.createDataFrame(rows, "user_id bigint, candidates array<bigint>")
    counted = {row["shard"]: row["pairs"] for row in pairs_per_shard(candidates, shards=1).collect()}
    assert counted == {0: 4}
    of_users = candidates.where(F.col("user_id").isNotNull())
    assert sum(row["pairs"] for row in pairs_per_shard(of_users, shards=5).collect()) == 3
