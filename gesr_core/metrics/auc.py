"""AUC over all published pairs, exactly: the one metric that is no sum over users. Driver only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.metrics.ranking import MODEL, ORDERINGS, POPULARITY, RANDOM, RETRIEVAL

_BANDS_PER_OCTAVE: Final = 64
_SEGMENT, _ORDERING = "segment", "ordering"


def measure_auc(rows: DataFrame, left_in: Mapping[str, Column]) -> dict[tuple[str, str], tuple[float, int]]:
    """Return (AUC, pairs) by (segment, ordering), where both classes are. Ties count one half. One Spark job.

    AUC = sum over values of positives x (negatives below + half of the negatives at the value) / (P x N), P and N being
    all positives and negatives. Values are cut into bands, so that no single task has to sort all of them.

    Args:
        rows: as `pairs.user_rows` gives them; users without candidates are left out.
        left_in: by segment, whether a pair is in it: of the columns `segments`, `mask` and `top`.
    """
    names = list(left_in)
    # A segment is a row, not a column: of dozens of columns Spark would make a plan that takes longer than the data.
    numbers = F.array(*(F.when(kept, F.lit(number)) for number, kept in enumerate(left_in.values())))
    pairs = _long(rows).select(F.explode(F.array_compact(numbers)).alias(_SEGMENT), _ORDERING, "value", "bought")
    keys = [_SEGMENT, _ORDERING]
    counts = [F.count_if("bought").alias("positives"), F.count_if(~F.col("bought")).alias("negatives")]
    banded = pairs.groupBy(*keys, "value").agg(*counts).withColumn("band", _band(F.col("value")))
    in_band = banded.groupBy(*keys, "band").agg(F.sum("negatives").alias("negatives"))
    starts = in_band.select(*keys, "band", _sum_below("negatives", by=keys, along="band").alias("start"))
    # Bands are some hundreds per segment and ordering whatever the data.
    joined = banded.join(F.broadcast(starts), on=[*keys, "band"], how="inner")
    below = F.col("start") + _sum_below("negatives", by=[*keys, "band"], along="value")
    won = joined.withColumn("won", F.col("positives") * (below + F.col("negatives") / F.lit(2.0)))
    sums = [F.sum(name).alias(name) for name in ("won", "positives", "negatives")]
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for row in won.groupBy(*keys).agg(*sums).collect():
        positives, negatives = row["positives"], row["negatives"]
        if positives and negatives:
            found[names[row[_SEGMENT]], row[_ORDERING]] = row["won"] / (positives * negatives), positives + negatives
    return found


def _long(rows: DataFrame) -> DataFrame:
    """One row per published pair and ordering: its value, and what says which segments it is in."""
    values = {
        MODEL: F.col("pair.score"),
        RETRIEVAL: -F.coalesce("pair.place", F.lit(0)).cast("double"),
        POPULARITY: F.col("pair.popularity"),
        RANDOM: F.col("pair.random"),
    }
    fields = ("place", "rank", "score", "popularity", "random", "bought", "mask", "top")
    with_candidates = rows.where(F.exists("place", lambda place: place.isNotNull()))
    pairs = with_candidates.select("segments", F.explode(F.arrays_zip(*fields)).alias("pair"))
    of = [F.struct(F.lit(name).alias(_ORDERING), values[name].alias("value")) for name in ORDERINGS]
    published = pairs.where(F.col("pair.rank").isNotNull())
    return published.select(
        "segments", "pair.bought", "pair.mask", "pair.top", F.explode(F.array(*of)).alias("of")
    ).select("segments", "bought", "mask", "top", "of.*")


def _band(value: Column) -> Column:
    """Any function that never falls as the value rises will do; this one spreads every scale over some hundreds."""
    return F.floor(F.signum(value) * F.log2(F.abs(value) + 1.0) * F.lit(_BANDS_PER_OCTAVE))


def _sum_below(name: str, *, by: Sequence[str], along: str) -> Column:
    rows_below = Window.partitionBy(*by).orderBy(along).rowsBetween(Window.unboundedPreceding, -1)
    return F.coalesce(F.sum(name).over(rows_below), F.lit(0))
