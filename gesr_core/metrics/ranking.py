"""Orderings of a user's candidates, and what a metric is; docs/metrics.md has the definitions. Driver only.

An ordering is a way to put a user's candidates in order: the model's, retrieval order, popularity, chance. A segment is
what is left in: all, all but the window's most bought item, or the users or items of a declared kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.names import Col

ALL, WITHOUT_TOP_ITEM = "all", "without_top_item"
MODEL, RETRIEVAL, POPULARITY, RANDOM = "model", "retrieval_order", "popularity", "random"
ORDERINGS: Final = (MODEL, RETRIEVAL, POPULARITY, RANDOM)


@dataclass(frozen=True)
class Metric:
    """One value; `k` is None where there is no cut, the interval where there is none. `n`: users, pairs or items."""

    ordering: str
    metric: str
    k: int | None
    segment: str
    value: float
    ci_low: float | None
    ci_high: float | None
    n: int


def top_item(truth: DataFrame) -> int | str | None:
    """Return the item that most users bought in the window (of several the smallest id), None without truth."""
    buyers = truth.groupBy(Col.ITEM_ID).agg(F.count(F.lit(1)).alias("buyers"))
    row = buyers.orderBy(F.col("buyers").desc(), F.col(Col.ITEM_ID)).first()
    return None if row is None else row[Col.ITEM_ID]


def usable_candidates(candidates: DataFrame) -> DataFrame:
    """Return (user_id, candidates) without unusable entries: what has no item, and rows without a user.

    A source that is not named becomes the source ''.
    """
    usable = F.filter(Col.CANDIDATES, lambda c: c[Col.ITEM_ID].isNotNull())
    named = F.transform(usable, lambda c: c.withField(Col.SOURCE, F.coalesce(c[Col.SOURCE], F.lit(""))))
    return candidates.where(F.col(Col.USER_ID).isNotNull()).select(Col.USER_ID, named.alias(Col.CANDIDATES))


def sources_of(candidates: DataFrame) -> list[str]:
    """Return the sources of usable candidates in alphabetical order, in which they take turns."""
    sources = candidates.select(F.explode(F.array_distinct("candidates.source")).alias("source")).distinct().collect()
    return sorted(row["source"] for row in sources)


def one_row_per_user(candidates: DataFrame) -> DataFrame:
    """Return (user_id, candidates) with a user's rows merged, as scoring merges them."""
    merged = candidates.groupBy(Col.USER_ID)
    return merged.agg(F.flatten(F.collect_list(Col.CANDIDATES)).alias(Col.CANDIDATES))


def retrieval_order(candidates: DataFrame, *, sources: Sequence[str]) -> DataFrame:
    """Return (user_id, items): round robin over the sources, each by its own score; a duplicate at its first place.

    Ties within a source go to the smaller item id, no score comes last, and sources take turns in the order given.

    Args:
        candidates: as `one_row_per_user` gives them.
        sources: all of them.
    """
    turns = retrieval_turns(candidates, sources=sources)
    return turns.select(Col.USER_ID, F.array_distinct("turns.item").alias("items"))


def retrieval_turns(candidates: DataFrame, *, sources: Sequence[str]) -> DataFrame:
    """Return (user_id, turns ARRAY<STRUCT<turn, source, item>>) in the order in which sources propose; with duplicates.

    `source` is the place of the source's name among `sources`; see `retrieval_order`.
    """

    def of_source(place: int, source: str) -> Column:
        own = F.filter(F.col(Col.CANDIDATES), lambda c: c[Col.SOURCE] == source)
        # A null would sort first, before every known score.
        falling = F.transform(
            own,
            lambda c: F.struct(
                F.coalesce(-c[Col.RETRIEVAL_SCORE].cast("double"), F.lit(math.inf)).alias("order"),
                c[Col.ITEM_ID].alias("item"),
            ),
        )
        return F.transform(
            F.sort_array(falling),
            lambda c, turn: F.struct(turn.alias("turn"), F.lit(place).alias("source"), c["item"].alias("item")),
        )

    turns = F.sort_array(F.concat(*(of_source(place, source) for place, source in enumerate(sources))))
    return candidates.select(Col.USER_ID, turns.alias("turns"))


def chance(*, seed: int) -> Column:
    """A pair's random value: a hash, so that every run draws the same."""
    return F.xxhash64(F.lit(seed), Col.USER_ID, Col.ITEM_ID).cast("double")
