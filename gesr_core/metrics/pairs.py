"""The joined pairs of one publication: candidates, published, bought and picked, one row per user. Driver only; pure.

Every pair is joined once; the metrics (`user_sums.py`, `auc.py`, `coverage`) are sums over these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.metrics.ranking import chance, one_row_per_user, retrieval_turns, usable_candidates
from gesr_core.names import Col, logit

# Of a pair, in this order within a user's arrays; a pair that is no candidate has no `place`, one that is not
# published neither `rank` nor `score` nor `logit`.
PAIR_COLUMNS = ("place", "rank", "score", "logit", "bought", "picked", "top", "popularity", "random", "mask")


@dataclass(frozen=True)
class Joined:
    """What is joined of one `ds`.

    - `candidates`: as their contract says; `sources`: the names of all of them, alphabetically.
    - `published`: see `published_pairs`; `truth`, `picked`: (user_id, item_id), each once.
    - `popularity`: (item_id, value): how many users.
    - `bands`: least value of each band of popularity but the last, falling; its bits follow those of the sources.
    - `segments`: (user_id, segments): numbers of the segments that a user is in.
    """

    candidates: DataFrame
    sources: Sequence[str]
    published: DataFrame
    truth: DataFrame
    picked: DataFrame | None
    popularity: DataFrame
    bands: Sequence[float]
    segments: DataFrame | None
    top: int | str | None


def published_pairs(scores: DataFrame, *, task: str) -> DataFrame:
    """Return (user_id, item_id, rank, score, logit) of every published pair; the logit is the task's."""
    ranked = scores.select(Col.USER_ID, F.explode(Col.RANKED).alias("pair"))
    return ranked.select(
        Col.USER_ID,
        F.col(f"pair.{Col.ITEM_ID}").alias(Col.ITEM_ID),
        F.col(f"pair.{Col.RANK}").alias("rank"),
        F.col(f"pair.{Col.SCORE}").cast("double").alias("score"),
        F.col(f"pair.{logit(task)}").cast("double").alias("logit"),
    )


def user_rows(joined: Joined, *, seed: int) -> DataFrame:
    """Return (user_id, draw, segments, one array per `PAIR_COLUMNS`), arrays of a user parallel and sorted by item id.

    `draw` is the hash that a user's bootstrap draws follow from. A user is there with any pair at all.
    """
    pairs = _pairs(joined, seed=seed)
    listed = F.array_sort(F.collect_list(F.struct(Col.ITEM_ID, *PAIR_COLUMNS))).alias("pairs")
    rows = pairs.groupBy(Col.USER_ID).agg(listed)
    if joined.segments is not None:
        rows = rows.join(joined.segments, on=Col.USER_ID, how="left")
    else:
        rows = rows.withColumn("segments", F.lit(None).cast("array<int>"))
    return rows.select(
        Col.USER_ID,
        F.xxhash64(F.lit(seed), Col.USER_ID).alias("draw"),
        F.coalesce("segments", F.array().cast("array<int>")).alias("segments"),
        F.col(f"pairs.{Col.ITEM_ID}").alias(Col.ITEM_ID),
        *(F.col(f"pairs.{name}").alias(name) for name in PAIR_COLUMNS),
    )


def band_names(bands: Sequence[str]) -> list[str]:
    """Return the names of all bands: those declared, and `tail` for the rest."""
    return [*bands, "tail"] if bands else []


def _pairs(joined: Joined, *, seed: int) -> DataFrame:
    """One row per (user, item) with `PAIR_COLUMNS`."""
    yes = F.lit(True)
    frames = [_retrieved(joined), joined.published, joined.truth.withColumn("bought", yes)]
    if joined.picked is not None:
        frames.append(joined.picked.withColumn("picked", yes))
    rows = frames[0]
    for frame in frames[1:]:
        rows = rows.unionByName(frame, allowMissingColumns=True)
    if joined.picked is None:
        rows = rows.withColumn("picked", F.lit(False))
    popularity = joined.popularity.select(Col.ITEM_ID, F.col("value").alias("popularity"))
    # The items first, then the users: from there on everything of a user is together.
    known = rows.join(popularity, on=Col.ITEM_ID, how="left").repartition(Col.USER_ID)
    newest = [F.max(name).alias(name) for name in ("rank", "score", "logit", "bought", "picked", "popularity")]
    pairs = known.groupBy(Col.USER_ID, Col.ITEM_ID).agg(
        F.min("turn").alias("turn"), F.bit_or("mask").alias("mask"), *newest
    )
    in_turn = Window.partitionBy(Col.USER_ID).orderBy(F.col("turn").asc_nulls_last(), Col.ITEM_ID)
    popular = F.coalesce("popularity", F.lit(0.0))
    is_top = F.lit(False) if joined.top is None else F.col(Col.ITEM_ID) == F.lit(joined.top)
    return pairs.select(
        Col.USER_ID,
        Col.ITEM_ID,
        F.when(F.col("turn").isNotNull(), F.row_number().over(in_turn)).alias("place"),
        "rank",
        "score",
        "logit",
        F.coalesce("bought", F.lit(False)).alias("bought"),
        F.coalesce("picked", F.lit(False)).alias("picked"),
        is_top.alias("top"),
        popular.alias("popularity"),
        chance(seed=seed).alias("random"),
        F.coalesce("mask", _no_bit()).bitwiseOR(_band_bit(popular, joined)).alias("mask"),
    )


def _retrieved(joined: Joined) -> DataFrame:
    """Return (user_id, item_id, turn, mask) of every proposal; an item of several sources is there several times."""
    candidates = one_row_per_user(usable_candidates(joined.candidates))
    if not joined.sources:
        # Nothing at all was retrieved.
        item = joined.truth.schema[Col.ITEM_ID].dataType
        empty = candidates.where(F.lit(False)).select(Col.USER_ID, F.lit(None).cast(item).alias(Col.ITEM_ID))
        return empty.select("*", F.lit(0).alias("turn"), _no_bit().alias("mask"))
    turns = retrieval_turns(candidates, sources=joined.sources)
    proposals = turns.select(Col.USER_ID, F.posexplode("turns").alias("turn", "of"))
    bit = F.expr("shiftleft(1L, of.source)")
    return proposals.select(Col.USER_ID, F.col("of.item").alias(Col.ITEM_ID), "turn", bit.alias("mask"))


def _band_bit(popular: Column, joined: Joined) -> Column:
    if not joined.bands:
        return _no_bit()
    first, bit = len(joined.sources), F.lit(None).cast("bigint")
    for place, least in enumerate(joined.bands):
        bit = F.coalesce(bit, F.when(popular >= F.lit(least), F.lit(1 << (first + place)).cast("bigint")))
    return F.coalesce(bit, F.lit(1 << (first + len(joined.bands))).cast("bigint"))


def _no_bit() -> Column:
    return F.lit(0).cast("bigint")
