"""Ranking and calibration metrics of one published `ds`, computed in Spark; docs/metrics.md has the definitions.

An ordering is a way to put a user's candidates in order: the model's, retrieval order, popularity, chance. The tables
that pass between these functions:
- truth: (user_id, item_id), what was bought in the label window, retrieved or not;
- tops: (user_id, ordering, items), each ordering's best items, best first;
- pairs: (user_id, ordering, item_id, value, label), every published pair with the value by which an ordering ranks it.

Driver only. `measure_*` run Spark jobs and bring a few rows to the driver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.names import Col

ALL, WITHOUT_TOP_ITEM = "all", "without_top_item"
MODEL, RETRIEVAL, POPULARITY, RANDOM = "model", "retrieval_order", "popularity", "random"
ORDERINGS: Final = (MODEL, RETRIEVAL, POPULARITY, RANDOM)
_NORMAL_95: Final = 1.96
_BANDS_PER_OCTAVE: Final = 64


@dataclass(frozen=True)
class Metric:
    """One value; `k` is None where there is no cut, the interval where there is no simple one. `n`: users, or pairs."""

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


def one_row_per_user(candidates: DataFrame) -> DataFrame:
    """Return (user_id, candidates) with a user's rows merged, as scoring merges them, and unusable entries left out.

    Usable is what has an item; a source that is not named becomes the source ''.
    """
    merged = candidates.where(F.col(Col.USER_ID).isNotNull()).groupBy(Col.USER_ID)
    entries = merged.agg(F.flatten(F.collect_list(Col.CANDIDATES)).alias(Col.CANDIDATES))
    usable = F.filter(Col.CANDIDATES, lambda c: c[Col.ITEM_ID].isNotNull())
    named = F.transform(usable, lambda c: c.withField(Col.SOURCE, F.coalesce(c[Col.SOURCE], F.lit(""))))
    return entries.select(Col.USER_ID, named.alias(Col.CANDIDATES))


def retrieval_order(candidates: DataFrame, *, sources: Sequence[str]) -> DataFrame:
    """Return (user_id, items): round robin over the sources, each by its own score; a duplicate at its first place.

    Ties within a source go to the smaller item id, no score comes last, and sources take turns in the order given.

    Args:
        candidates: as `one_row_per_user` gives them.
        sources: all of them.
    """

    def of_source(place: int, source: str) -> Column:
        own = F.filter(F.col(Col.CANDIDATES), lambda c: c[Col.SOURCE] == source)
        best_first = F.array_sort(
            F.transform(own, lambda c: F.struct(_falling(c[Col.RETRIEVAL_SCORE]), c[Col.ITEM_ID].alias("item")))
        )
        return F.transform(
            best_first,
            lambda c, turn: F.struct(turn.alias("turn"), F.lit(place).alias("source"), c["item"].alias("item")),
        )

    turns = F.array_sort(F.concat(*(of_source(place, source) for place, source in enumerate(sources))))
    return candidates.select(Col.USER_ID, F.array_distinct(turns["item"]).alias("items"))


def ordered_by(scored: DataFrame, *, limit: int) -> DataFrame:
    """Return (user_id, items) from (user_id, item_id, value): highest value first, ties to the smaller item id."""
    entry = F.struct(_falling(F.col("value")), F.col(Col.ITEM_ID).alias("item"))
    best = F.slice(F.array_sort(F.collect_list(entry)), 1, limit)
    return scored.groupBy(Col.USER_ID).agg(best.alias("best")).select(Col.USER_ID, F.col("best.item").alias("items"))


def chance(*, seed: int) -> Column:
    """A pair's random value: a hash, so that every run draws the same."""
    return F.xxhash64(F.lit(seed), Col.USER_ID, Col.ITEM_ID).cast("double")


def measure_rankings(
    tops: DataFrame, truth: DataFrame, retrieved: DataFrame, *, ks: Sequence[int], without: int | str | None
) -> Iterator[Metric]:
    """Recall@k and NDCG@k, over users with a purchase, and beside them the values among retrieved positives.

    Args:
        tops: each ordering's best items, at least max(ks) of them where there are so many.
        truth: what was bought.
        retrieved: (user_id, item_id), the candidates that were bought.
        ks: cuts.
        without: an item to leave out of the orderings and of the truth; the segment is then `without_top_item`.
    """
    segment = ALL
    if without is not None:
        segment = WITHOUT_TOP_ITEM
        truth = truth.where(F.col(Col.ITEM_ID) != F.lit(without))
        retrieved = retrieved.where(F.col(Col.ITEM_ID) != F.lit(without))
        tops = tops.withColumn("items", F.array_remove("items", without))
    bought = truth.groupBy(Col.USER_ID).agg(F.count(F.lit(1)).alias("bought"))
    found = retrieved.groupBy(Col.USER_ID).agg(F.count(F.lit(1)).alias("found"))
    orderings = tops.select("ordering").distinct()
    users = bought.join(found, on=Col.USER_ID, how="left").fillna(0, subset="found").join(orderings, how="cross")
    placed = tops.select(Col.USER_ID, "ordering", F.posexplode("items").alias("place", Col.ITEM_ID))
    hits = placed.join(truth, on=[Col.USER_ID, Col.ITEM_ID], how="left_semi")
    gains = hits.groupBy(Col.USER_ID, "ordering").agg(*(c for k in ks for c in _gains_at(k)))
    per_user = users.join(gains, on=[Col.USER_ID, "ordering"], how="left").fillna(0)
    values = {name: value for k in ks for name, value in _per_user_at(k, max(ks)).items()}
    averages = [a for name, value in values.items() for a in _mean_of(value, name)]
    for row in per_user.groupBy("ordering").agg(*averages).orderBy("ordering").collect():
        for name in values:
            metric, _, k = name.rpartition("_at_")
            mean, spread, n = row[name], row[f"{name}_spread"], row[f"{name}_n"]
            if n:
                half = _NORMAL_95 * (spread or 0.0) / math.sqrt(n)
                yield Metric(row["ordering"], metric, int(k), segment, mean, mean - half, mean + half, n)


def measure_pairs(pairs: DataFrame, *, without: int | str | None) -> Iterator[Metric]:
    """AUC over all published pairs, and GAUC: the mean of the users' own AUCs, weighted by their pairs.

    Ties count one half. GAUC is over users with both classes.
    """
    segment = ALL if without is None else WITHOUT_TOP_ITEM
    kept = pairs if without is None else pairs.where(F.col(Col.ITEM_ID) != F.lit(without))
    # Users without a positive have no AUC of their own; most users are such.
    with_positive = kept.where(F.col("label") == 1).select(Col.USER_ID).distinct()
    theirs = kept.join(with_positive, on=Col.USER_ID, how="left_semi")
    by_user = ["ordering", Col.USER_ID]
    one_band = {"band": F.lit(0), "before_band": F.lit(0)}
    per_value = theirs.groupBy(*by_user, "value").agg(*_class_counts()).withColumns(one_band)
    per_user = _auc(per_value, by=by_user)
    weight = F.when(F.col("auc").isNotNull(), F.col("positives") + F.col("negatives"))
    gauc = per_user.groupBy("ordering").agg(
        (F.sum(F.col("auc") * weight) / F.sum(weight)).alias("value"), F.count("auc").alias("n")
    )
    for row in gauc.where("value IS NOT NULL").orderBy("ordering").collect():
        yield Metric(row["ordering"], "gauc", None, segment, row["value"], None, None, row["n"])
    pooled = _in_bands(kept.groupBy("ordering", "value").agg(*_class_counts()), by=["ordering"])
    overall = _auc(pooled, by=["ordering"])
    for row in overall.where("auc IS NOT NULL").orderBy("ordering").collect():
        pairs_n = row["positives"] + row["negatives"]
        yield Metric(row["ordering"], "auc", None, segment, row["auc"], None, None, pairs_n)


def measure_calibration(pairs: DataFrame, *, without: int | str | None) -> Iterator[Metric]:
    """Normalised entropy of (item_id, logit, label): mean log loss over the entropy of these pairs' own base rate."""
    segment = ALL if without is None else WITHOUT_TOP_ITEM
    kept = pairs if without is None else pairs.where(F.col(Col.ITEM_ID) != F.lit(without))
    logit_, label_ = F.col("logit").cast("double"), F.col("label")
    # log(1 + e^x) - y x, without overflow at large |x|
    loss = F.greatest(logit_, F.lit(0.0)) - logit_ * label_ + F.log1p(F.exp(-F.abs(logit_)))
    row = kept.agg(F.avg(loss).alias("loss"), F.avg(label_).alias("rate"), F.count(F.lit(1)).alias("n")).collect()[0]
    rate = row["rate"]
    if rate is not None and 0 < rate < 1:
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        yield Metric(MODEL, "ne", None, segment, row["loss"] / entropy, None, None, row["n"])
        yield Metric(MODEL, "base_rate", None, segment, rate, None, None, row["n"])


def _falling(value: Column) -> Column:
    # A null would sort first, before every known value.
    return F.coalesce(-value.cast("double"), F.lit(math.inf)).alias("order")


def _gains_at(k: int) -> tuple[Column, Column]:
    """Hits and discounted gain of a user's ordering at a cut; `place` counts from 0."""
    within = F.col("place") < k
    gain = F.when(within, 1.0 / F.log2(F.col("place") + 2.0)).otherwise(0.0)
    return F.sum(within.cast("int")).alias(f"hits_{k}"), F.sum(gain).alias(f"gain_{k}")


def _per_user_at(k: int, largest_k: int) -> dict[str, Column]:
    """A user's metrics at a cut; null (left out of the mean) where nothing that was bought was retrieved."""
    discounts = [1.0 / math.log2(place + 2.0) for place in range(largest_k)]
    best = F.array(*(F.lit(sum(discounts[: place + 1])) for place in range(largest_k)))
    hits, gain = F.col(f"hits_{k}"), F.col(f"gain_{k}")
    any_found = F.col("found") > 0

    def ideal(positives: str) -> Column:
        return F.get(best, F.least(F.col(positives), F.lit(k)).cast("int") - 1)

    return {
        f"recall_at_{k}": hits / F.col("bought"),
        f"ndcg_at_{k}": gain / ideal("bought"),
        f"recall_of_retrieved_at_{k}": F.when(any_found, hits / F.col("found")),
        f"ndcg_of_retrieved_at_{k}": F.when(any_found, gain / ideal("found")),
    }


def _mean_of(value: Column, name: str) -> tuple[Column, Column, Column]:
    return (
        F.avg(value).alias(name),
        F.stddev_samp(value).alias(f"{name}_spread"),
        F.count(value).alias(f"{name}_n"),
    )


def _class_counts() -> tuple[Column, Column]:
    positives = F.sum(F.col("label"))
    return positives.alias("positives"), (F.count(F.lit(1)) - positives).alias("negatives")


def _auc(per_value: DataFrame, *, by: Sequence[str]) -> DataFrame:
    """Return (by, auc, positives, negatives) from class counts per distinct value in bands; null auc with one class.

    AUC = sum over values of positives x (negatives below + half of the negatives at the value) / (P x N).
    """
    below = F.col("before_band") + _sum_below("negatives", within=[*by, "band"], along="value")
    won = F.col("positives") * (below + F.col("negatives") / F.lit(2.0))
    sums = [F.sum(name).alias(name) for name in ("won", "positives", "negatives")]
    total = per_value.withColumn("won", won).groupBy(*by).agg(*sums)
    both = F.col("positives") * F.col("negatives")
    return total.select(*by, F.when(both > 0, F.col("won") / both).alias("auc"), "positives", "negatives")


def _in_bands(per_value: DataFrame, *, by: Sequence[str]) -> DataFrame:
    """Cut the values into bands, so that no single task has to sort them all, and count the negatives below each band.

    Any function that never falls as the value rises gives the same AUC; this one spreads any scale over some hundreds.
    """
    size = F.log2(F.abs("value") + 1.0)
    banded = per_value.withColumn("band", F.floor(F.signum("value") * size * F.lit(_BANDS_PER_OCTAVE)))
    bands = banded.groupBy(*by, "band").agg(F.sum("negatives").alias("in_band"))
    starts = bands.select(*by, "band", _sum_below("in_band", within=by, along="band").alias("before_band"))
    return banded.join(starts, on=[*by, "band"], how="inner")


def _sum_below(name: str, *, within: Sequence[str], along: str) -> Column:
    rows_below = Window.partitionBy(*within).orderBy(along).rowsBetween(Window.unboundedPreceding, -1)
    return F.coalesce(F.sum(name).over(rows_below), F.lit(0))
