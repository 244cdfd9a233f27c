"""Ranking and calibration metrics of one published `ds`, computed in Spark; docs/metrics.md has the definitions.

An ordering is a way to put a user's candidates in order: the model's, retrieval order, popularity, chance. A segment is
what is left in: all items, or all but the window's most bought one. The tables that pass between these functions:
- truth: (user_id, item_id), what was bought in the label window, retrieved or not;
- listed: (user_id, item_id, label, one value per ordering), candidates; the higher the value, the better the place;
- pairs: the same of the published pairs alone, and their logit.

Driver only. `measure_*` run one Spark job each and bring a few rows to the driver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame, Row, Window, functions as F

from gesr_core.names import Col

ALL, WITHOUT_TOP_ITEM = "all", "without_top_item"
MODEL, RETRIEVAL, POPULARITY, RANDOM = "model", "retrieval_order", "popularity", "random"
ORDERINGS: Final = (MODEL, RETRIEVAL, POPULARITY, RANDOM)
LABEL, LOGIT = "label", "logit"
_SEGMENT, _ORDERING = "segment", "ordering"
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
    return candidates.select(Col.USER_ID, F.array_distinct(turns["item"]).alias("items"))


def chance(*, seed: int) -> Column:
    """A pair's random value: a hash, so that every run draws the same."""
    return F.xxhash64(F.lit(seed), Col.USER_ID, Col.ITEM_ID).cast("double")


def rank_positives(listed: DataFrame, *, top: int | str | None) -> DataFrame:
    """Return (user_id, item_id, ordering, rank, rank_without) of the positives; ties go to the smaller item id.

    `rank_without` is the rank once the item `top` is taken away. A null value in an ordering gives no rank in it.
    """
    wanted, other = listed.where(F.col(LABEL) == 1).alias("wanted"), listed.alias("other")
    is_top = F.lit(False) if top is None else F.col(f"other.{Col.ITEM_ID}") == F.lit(top)
    counts, ranks = [], []
    for name in ORDERINGS:
        theirs, mine = F.col(f"other.{name}"), F.col(f"wanted.{name}")
        smaller = F.col(f"other.{Col.ITEM_ID}") < F.col(f"wanted.{Col.ITEM_ID}")
        before = (theirs > mine) | ((theirs == mine) & smaller)
        counts.append(F.when(F.first(mine).isNotNull(), F.count_if(before)).alias(f"before_{name}"))
        counts.append(F.count_if(before & is_top).alias(f"top_before_{name}"))
        rank = F.col(f"before_{name}") + 1
        without = rank - F.col(f"top_before_{name}")
        ranks.append(F.struct(F.lit(name).alias(_ORDERING), rank.alias("rank"), without.alias("rank_without")))
    # Only positives are placed: sorting every candidate list in every ordering would cost far more.
    beside = wanted.join(other, on=F.col(f"wanted.{Col.USER_ID}") == F.col(f"other.{Col.USER_ID}"), how="inner")
    counted = beside.groupBy(f"wanted.{Col.USER_ID}", f"wanted.{Col.ITEM_ID}").agg(*counts)
    return counted.select(Col.USER_ID, Col.ITEM_ID, F.explode(F.array(*ranks)).alias("of")).select(
        Col.USER_ID, Col.ITEM_ID, "of.*"
    )


def measure_rankings(
    truth: DataFrame,
    ranks: DataFrame,
    *,
    ks: Sequence[int],
    published_k: int,
    segments: Sequence[str],
    top: int | str | None,
) -> Iterator[Metric]:
    """Recall@k and NDCG@k, over users with a purchase, and beside them the values among retrieved positives.

    Args:
        truth: what was bought.
        ranks: of what was bought and retrieved, as `rank_positives` gives them.
        ks: cuts, none above `published_k`.
        published_k: places that the model published; every ordering is cut to them before an item is taken out.
        segments: which to measure.
        top: the item that the segment `without_top_item` leaves out.
    """
    users = _in_segments(truth, segments, top=top).groupBy(_SEGMENT, Col.USER_ID)
    bought = users.agg(F.count(F.lit(1)).alias("bought"))
    of_ordering = F.explode(F.array(*(F.lit(name) for name in ORDERINGS))).alias(_ORDERING)
    place = F.when(F.col(_SEGMENT) == ALL, F.col("rank")).otherwise(F.col("rank_without"))
    known = F.when(F.col("rank") <= published_k, place).alias("place")
    hits = _in_segments(ranks, segments, top=top).select("*", known).groupBy(_SEGMENT, Col.USER_ID, _ORDERING)
    gains = hits.agg(F.count(F.lit(1)).alias("found"), *(column for k in ks for column in _gains_at(k)))
    per_user = bought.select("*", of_ordering).join(gains, on=[_SEGMENT, Col.USER_ID, _ORDERING], how="left").fillna(0)
    values = {name: value for k in ks for name, value in _per_user_at(k).items()}
    means = [column for name, value in values.items() for column in _mean_of(value, name)]
    for row in per_user.groupBy(_SEGMENT, _ORDERING).agg(*means).orderBy(_SEGMENT, _ORDERING).collect():
        yield from (metric for name in values if (metric := _ranking_metric(row, name)))


def measure_gauc(pairs: DataFrame, *, segments: Sequence[str], top: int | str | None) -> Iterator[Metric]:
    """GAUC: the mean of the AUCs of the users with both classes, weighted by their pairs. Ties count one half."""
    # Most users have no positive, and no AUC of their own.
    buyers = pairs.where(F.col(LABEL) == 1).select(Col.USER_ID).distinct()
    theirs = _in_segments(pairs.join(buyers, on=Col.USER_ID, how="left_semi"), segments, top=top)
    positive, negative = (theirs.where(F.col(LABEL) == label).alias(name) for label, name in ((1, "p"), (0, "n")))
    same_user = [F.col(f"p.{name}") == F.col(f"n.{name}") for name in (_SEGMENT, Col.USER_ID)]
    won = [F.avg(_win(F.col(f"p.{name}"), F.col(f"n.{name}"))).alias(name) for name in ORDERINGS]
    by_user = positive.join(negative, on=same_user, how="inner").groupBy(f"p.{_SEGMENT}", f"p.{Col.USER_ID}").agg(*won)
    sizes = theirs.groupBy(_SEGMENT, Col.USER_ID).agg(F.count(F.lit(1)).alias("pairs"))
    weighted = by_user.join(sizes, on=[_SEGMENT, Col.USER_ID], how="inner").groupBy(_SEGMENT)
    means = [(F.sum(F.col(name) * F.col("pairs")) / F.sum("pairs")).alias(name) for name in ORDERINGS]
    for row in weighted.agg(F.count(F.lit(1)).alias("users"), *means).orderBy(_SEGMENT).collect():
        yield from (
            Metric(name, "gauc", None, row[_SEGMENT], row[name], None, None, row["users"]) for name in ORDERINGS
        )


def measure_auc(pairs: DataFrame, *, segments: Sequence[str], top: int | str | None) -> Iterator[Metric]:
    """AUC over all pairs. Ties count one half.

    AUC = sum over values of positives x (negatives below + half of the negatives at the value) / (P x N), P and N being
    all positives and negatives. Values are cut into bands, so that no single task has to sort all of them.
    """
    of = [F.struct(F.lit(name).alias(_ORDERING), F.col(name).alias("value")) for name in ORDERINGS]
    long = pairs.select(Col.ITEM_ID, LABEL, F.explode(F.array(*of)).alias("of")).select(Col.ITEM_ID, LABEL, "of.*")
    counts = [column for s in segments for column in _class_counts(s, _left_in(s, top=top))]
    banded = long.groupBy(_ORDERING, "value").agg(*counts).withColumn("band", _band(F.col("value")))
    in_band = banded.groupBy(_ORDERING, "band").agg(
        *(F.sum(f"negatives_{s}").alias(f"negatives_{s}") for s in segments)
    )
    starts = in_band.select(
        _ORDERING,
        "band",
        *(_sum_below(f"negatives_{s}", by=[_ORDERING], along="band").alias(f"start_{s}") for s in segments),
    )
    # Bands are some hundreds per ordering whatever the data.
    joined = banded.join(F.broadcast(starts), on=[_ORDERING, "band"], how="inner")
    for segment in segments:
        below = F.col(f"start_{segment}") + _sum_below(f"negatives_{segment}", by=[_ORDERING, "band"], along="value")
        won = F.col(f"positives_{segment}") * (below + F.col(f"negatives_{segment}") / F.lit(2.0))
        joined = joined.withColumn(f"won_{segment}", won)
    sums = [f"{what}_{segment}" for what in ("won", "positives", "negatives") for segment in segments]
    for row in joined.groupBy(_ORDERING).agg(*(F.sum(name).alias(name) for name in sums)).orderBy(_ORDERING).collect():
        for segment in segments:
            positives, negatives = row[f"positives_{segment}"], row[f"negatives_{segment}"]
            if positives and negatives:
                auc = row[f"won_{segment}"] / (positives * negatives)
                yield Metric(row[_ORDERING], "auc", None, segment, auc, None, None, positives + negatives)


def measure_calibration(pairs: DataFrame, *, segments: Sequence[str], top: int | str | None) -> Iterator[Metric]:
    """Normalised entropy of the model: mean log loss over the entropy of these pairs' own base rate."""
    logit_, label_ = F.col(LOGIT).cast("double"), F.col(LABEL)
    # log(1 + e^x) - y x, without overflow at large |x|
    loss = F.greatest(logit_, F.lit(0.0)) - logit_ * label_ + F.log1p(F.exp(-F.abs(logit_)))
    kept = _in_segments(pairs, segments, top=top).groupBy(_SEGMENT)
    means = kept.agg(F.avg(loss).alias("loss"), F.avg(label_).alias("rate"), F.count(F.lit(1)).alias("n"))
    for row in means.orderBy(_SEGMENT).collect():
        rate = row["rate"]
        if 0 < rate < 1:
            entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
            yield Metric(MODEL, "ne", None, row[_SEGMENT], row["loss"] / entropy, None, None, row["n"])
            yield Metric(MODEL, "base_rate", None, row[_SEGMENT], rate, None, None, row["n"])


def _left_in(segment: str, *, top: int | str | None) -> Column:
    return F.lit(True) if segment == ALL or top is None else F.col(Col.ITEM_ID) != F.lit(top)


def _in_segments(df: DataFrame, segments: Sequence[str], *, top: int | str | None) -> DataFrame:
    """Repeat each row for every segment that its item is in."""
    names = F.array(*(F.when(_left_in(segment, top=top), F.lit(segment)) for segment in segments))
    return df.withColumn(_SEGMENT, F.explode(F.array_compact(names)))


def _gains_at(k: int) -> tuple[Column, Column]:
    """Hits and discounted gain of a user's ordering at a cut; `place` counts from 1."""
    within = F.col("place") <= k
    gain = F.when(within, 1.0 / F.log2(F.col("place") + 1.0)).otherwise(0.0)
    return F.count_if(within).alias(f"hits_{k}"), F.sum(gain).alias(f"gain_{k}")


def _per_user_at(k: int) -> dict[str, Column]:
    """A user's metrics at a cut; null (left out of the mean) where nothing that was bought was retrieved."""
    discounts = [1.0 / math.log2(place + 1.0) for place in range(1, k + 1)]
    best = F.array(*(F.lit(sum(discounts[:places])) for places in range(1, k + 1)))
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
    return F.avg(value).alias(name), F.stddev_samp(value).alias(f"{name}_spread"), F.count(value).alias(f"{name}_n")


def _ranking_metric(row: Row, name: str) -> Metric | None:
    mean, spread, n = row[name], row[f"{name}_spread"], row[f"{name}_n"]
    if not n:
        return None
    metric, _, k = name.rpartition("_at_")
    half = None if spread is None else _NORMAL_95 * spread / math.sqrt(n)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Metric(row[_ORDERING], metric, int(k), row[_SEGMENT], mean, low, high, n)


def _win(positive: Column, negative: Column) -> Column:
    return F.when(positive > negative, 1.0).when(positive == negative, 0.5).otherwise(0.0)


def _class_counts(segment: str, left_in: Column) -> tuple[Column, Column]:
    is_positive = F.col(LABEL) == 1
    positives, negatives = F.count_if(left_in & is_positive), F.count_if(left_in & ~is_positive)
    return positives.alias(f"positives_{segment}"), negatives.alias(f"negatives_{segment}")


def _band(value: Column) -> Column:
    """Any function that never falls as the value rises will do; this one spreads every scale over some hundreds."""
    return F.floor(F.signum(value) * F.log2(F.abs(value) + 1.0) * F.lit(_BANDS_PER_OCTAVE))


def _sum_below(name: str, *, by: Sequence[str], along: str) -> Column:
    rows_below = Window.partitionBy(*by).orderBy(along).rowsBetween(Window.unboundedPreceding, -1)
    return F.coalesce(F.sum(name).over(rows_below), F.lit(0))
