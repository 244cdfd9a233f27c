"""How far the published scores of a `ds` have moved from those of former ones. Driver only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, functions as F

from gesr_core.dates import shift_ds
from gesr_core.metrics.ranking import MODEL, Metric
from gesr_core.names import Col
from gesr_core.sink.score_distribution import BINS_PER_UNIT, LARGEST, ScoreDistribution, population_stability


def measure_drift(scores: DataFrame, *, ds: str, days: Sequence[int]) -> list[Metric]:
    """Compare the scores of a `ds` with those of the former ds that are published, on a grid of 1 / 64. One Spark job.

    Args:
        scores: all ds of a target.
        ds: the day.
        days: how many days before to look.
    """
    former = sorted((shift_ds(ds, days=-back) for back in set(days)), reverse=True)
    counts = score_counts(scores, [ds, *former])
    found: list[Metric] = []
    for other in (day for day in former if day in counts and ds in counts):
        psi = population_stability(ScoreDistribution.of(counts[other]), ScoreDistribution.of(counts[ds]))
        values = {"score_psi": psi, "score_ks": kolmogorov_smirnov(counts[other], counts[ds])}
        pairs = sum(counts[ds].values())
        found += [
            Metric(MODEL, name, None, f"against:{other}", value, None, None, pairs) for name, value in values.items()
        ]
    return found


def score_counts(scores: DataFrame, dates: Sequence[str]) -> dict[str, dict[int, int]]:
    """Count the published pairs of each ds by the place of their score on the grid."""
    clamped = F.greatest(F.least(F.col(Col.SCORE), F.lit(LARGEST)), F.lit(-LARGEST))
    pairs = scores.where(F.col(Col.DS).isin(list(dates))).select(
        Col.DS, F.explode(f"{Col.RANKED}.{Col.SCORE}").alias(Col.SCORE)
    )
    counted = pairs.groupBy(Col.DS, F.floor(clamped * BINS_PER_UNIT).cast("int").alias("place")).count()
    found: dict[str, dict[int, int]] = {}
    for row in counted.where(F.col("place").isNotNull()).collect():
        found.setdefault(row[Col.DS], {})[row["place"]] = row["count"]
    return found


def kolmogorov_smirnov(counts: Mapping[int, int], others: Mapping[int, int]) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic: the largest gap between the cumulative shares.

    Of the scores as the grid has them, so at most that of the scores themselves.
    """
    total, other_total = sum(counts.values()), sum(others.values())
    seen, other_seen, largest = 0, 0, 0.0
    for place in sorted({*counts, *others}):
        seen, other_seen = seen + counts.get(place, 0), other_seen + others.get(place, 0)
        largest = max(largest, abs(seen / total - other_seen / other_total))
    return largest
