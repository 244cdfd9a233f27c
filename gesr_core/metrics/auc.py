"""AUC over all published pairs, exactly: the one metric that is no sum over users. Driver only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.metrics.ranking import MODEL, ORDERINGS, POPULARITY, RANDOM, RETRIEVAL

_BANDS_PER_OCTAVE: Final = 64
_ORDERING: Final = "ordering"


def measure_auc(rows: DataFrame, left_in: Mapping[str, Column]) -> dict[tuple[str, str], tuple[float, int]]:
    """Return (AUC, pairs) by (segment, ordering), where both classes are. Ties count one half. One Spark job.

    AUC = sum over values of positives x (negatives below + half of the negatives at the value) / (P x N), P and N being
    all positives and negatives. Values are cut into bands, so that no single task has to sort all of them.

    Args:
        rows: as `pairs.user_rows` gives them; users without candidates are left out.
        left_in: by segment, whether a pair is in it: of the columns `segments`, `mask` and `top`.
    """
    names = {segment: f"s{place}" for place, segment in enumerate(left_in)}
    long = _long(rows)
    counts = [column for segment, kept in left_in.items() for column in _class_counts(names[segment], kept)]
    banded = long.groupBy(_ORDERING, "value").agg(*counts).withColumn("band", _band(F.col("value")))
    in_band = banded.groupBy(_ORDERING, "band").agg(
        *(F.sum(f"negatives_{s}").alias(f"negatives_{s}") for s in names.values())
    )
    starts = in_band.select(
        _ORDERING,
        "band",
        *(_sum_below(f"negatives_{s}", by=[_ORDERING], along="band").alias(f"start_{s}") for s in names.values()),
    )
    # Bands are some hundreds per ordering whatever the data.
    joined = banded.join(F.broadcast(starts), on=[_ORDERING, "band"], how="inner")
    sums = []
    for s in names.values():
        below = F.col(f"start_{s}") + _sum_below(f"negatives_{s}", by=[_ORDERING, "band"], along="value")
        joined = joined.withColumn(f"won_{s}", F.col(f"positives_{s}") * (below + F.col(f"negatives_{s}") / F.lit(2.0)))
        sums += [F.sum(f"{what}_{s}").alias(f"{what}_{s}") for what in ("won", "positives", "negatives")]
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for row in joined.groupBy(_ORDERING).agg(*sums).collect():
        for segment, s in names.items():
            positives, negatives = row[f"positives_{s}"], row[f"negatives_{s}"]
            if positives and negatives:
                auc = row[f"won_{s}"] / (positives * negatives)
                found[segment, row[_ORDERING]] = auc, positives + negatives
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


def _class_counts(name: str, left_in: Column) -> tuple[Column, Column]:
    positives, negatives = F.count_if(left_in & F.col("bought")), F.count_if(left_in & ~F.col("bought"))
    return positives.alias(f"positives_{name}"), negatives.alias(f"negatives_{name}")


def _band(value: Column) -> Column:
    """Any function that never falls as the value rises will do; this one spreads every scale over some hundreds."""
    return F.floor(F.signum(value) * F.log2(F.abs(value) + 1.0) * F.lit(_BANDS_PER_OCTAVE))


def _sum_below(name: str, *, by: Sequence[str], along: str) -> Column:
    rows_below = Window.partitionBy(*by).orderBy(along).rowsBetween(Window.unboundedPreceding, -1)
    return F.coalesce(F.sum(name).over(rows_below), F.lit(0))
