"""The functions that put a user into a shard, and into a part of a shard that is too large. Driver only; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.names import Col

# Fewer pairs than this are not worth a task of their own, and more parts than that not worth their bookkeeping.
LEAST_PAIRS: Final = 200_000
MOST_PARTS: Final = 1_000


def shard_of(column: Column | str, *, shards: int) -> Column:
    """Return the shard (INT, 0 to shards - 1) of a user id: a pure function of the id, its type and `shards`."""
    return F.pmod(F.xxhash64(column), F.lit(shards)).cast("int")


def part_of(column: Column | str, *, shard: Column, parts: Mapping[int, int]) -> Column:
    """Return the part (INT) of its shard that a user id is in, 0 where the shard is not cut.

    Another hash than that of shards, by which all users of a shard are alike; all requests of a user are in one part.

    Args:
        column: the user id.
        shard: its shard.
        parts: of the shards that are cut, into how many parts.
    """
    if not parts:
        return F.lit(0)
    counts = F.create_map(*(F.lit(number) for entry in sorted(parts.items()) for number in entry))
    return F.pmod(F.xxhash64(column, F.lit(1)), F.coalesce(F.try_element_at(counts, shard), F.lit(1))).cast("int")


def pairs_per_shard(candidates: DataFrame, *, shards: int) -> DataFrame:
    """Return (shard, pairs): how many candidates each shard's users have, from (user_id, candidates)."""
    pairs = F.sum(F.greatest(F.coalesce(F.size(Col.CANDIDATES), F.lit(0)), F.lit(0)))
    return candidates.groupBy(shard_of(Col.USER_ID, shards=shards).alias(Col.SHARD)).agg(pairs.alias("pairs"))


def balanced_parts(pairs: Mapping[int, int], *, shards: int, least: int = LEAST_PAIRS) -> dict[int, int]:
    """Return into how many parts to cut the shards that hold far more than their share of the pairs.

    Parts come near the mean of all shards, or near `least` pairs where that is more. A shard of less than one and a
    half times as much stays whole.

    Args:
        pairs: of the shards that have any.
        shards: how many there are.
        least: pairs that are worth a task.
    """
    target = max(least, sum(pairs.values()) / shards)
    parts = {shard: min(MOST_PARTS, round(count / target)) for shard, count in sorted(pairs.items())}
    return {shard: count for shard, count in parts.items() if count > 1}
