"""One publication beside other orders of the same candidates, or beside another publication. Driver only.

What is measured passes over the joined pairs once: rows of users become sums (`user_sums.py`), which come to the driver
as one array per segment and ordering.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.config import EvaluationConfig
from gesr_core.errors import InputError
from gesr_core.metrics.auc import measure_auc
from gesr_core.metrics.pairs import PAIR_COLUMNS, Joined, band_names, published_pairs, user_rows
from gesr_core.metrics.ranking import (
    ALL,
    MODEL,
    POPULARITY,
    RANDOM,
    RETRIEVAL,
    WITHOUT_TOP_ITEM,
    Metric,
    sources_of,
    top_item,
    usable_candidates,
)
from gesr_core.metrics.segments import band_thresholds, user_segments
from gesr_core.metrics.user_sums import SUMS_TYPE, Plan, add_partitions, sum_partition
from gesr_core.metrics.values import Sums, differences, metrics_of
from gesr_core.names import Col
from gesr_core.spark_settings import settings as session_settings

# A batch of users is put in order at once, with all their candidates.
_USERS_AT_ONCE: Final = "1000"
_AUC_BINS: Final = 32
# Values are counted on a grid before they are cut into bins of about equal counts.
_GRID: Final = 64
_LARGEST: Final = 1_000.0
# A pair's mask is a long.
_MOST_PAIR_SEGMENTS: Final = 60


@dataclass(frozen=True)
class Comparison:
    """What is compared: the publication of one `ds`, its candidates and what was bought.

    - `truth`, `picked`: (user_id, item_id) of what was bought, and of what the late ranker took (None: not known).
    - `popularity`: (item_id, value) in users, of `active_users` in all; `catalogue_items`: how many items there are.
    - `events`: (user_id, events): how many a user has; `attributes`: (user_id, user_<column>...). Both may be None
      where no segment is declared that needs them.
    """

    run_id: str
    model_version: str
    task: str
    scores: DataFrame
    candidates: DataFrame
    truth: DataFrame
    popularity: DataFrame
    active_users: int
    catalogue_items: int
    picked: DataFrame | None = None
    events: DataFrame | None = None
    attributes: DataFrame | None = None


@dataclass(frozen=True)
class Measured:
    """The rows of the users of one publication, ready to be summed, and what is summed of them."""

    rows: DataFrame
    plan: Plan

    def sums(self) -> Sums:
        """Sum over the users; one Spark job."""
        plan = self.plan

        def of_partition(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            context = TaskContext.get()
            yield from sum_partition(batches, plan, partition=context.partitionId() if context else 0)

        # In the order of the users: sums of doubles depend on theirs.
        ordered = self.rows.sortWithinPartitions(Col.USER_ID).select("draw", "segments", *PAIR_COLUMNS)
        parts = ordered.mapInArrow(of_partition, SUMS_TYPE)
        spark = self.rows.sparkSession
        with session_settings(spark, {"spark.sql.execution.arrow.maxRecordsPerBatch": _USERS_AT_ONCE}):
            table = parts.groupBy("segment", "ordering").applyInArrow(add_partitions, SUMS_TYPE).toArrow()
        keys = zip(table["segment"].to_pylist(), table["ordering"].to_pylist(), strict=True)
        arrays = (values.values.to_numpy().reshape(plan.replicates + 1, -1) for values in table["sums"])
        return Sums(plan, dict(zip(keys, arrays, strict=True)))

    def left_in(self) -> dict[str, Column]:
        """Return, by segment, whether a pair of a row is in it: of the columns `segments`, `mask` and `top`."""
        found = {ALL: F.lit(True)}
        if self.plan.without_top_item:
            found[WITHOUT_TOP_ITEM] = ~F.col("top")
        for number, name in enumerate(self.plan.user_segments):
            found[name] = F.array_contains("segments", F.lit(number))
        for bit, name in enumerate(self.plan.pair_segments):
            found[name] = F.col("mask").bitwiseAND(F.lit(1 << bit).cast("bigint")) != 0
        return found


def measure(comparison: Comparison, *, settings: EvaluationConfig) -> list[Metric]:
    """Measure every ordering in every segment that is declared.

    Raises:
        InputError: no more pairs are published than the smallest k wants, or a segment cannot be made.
    """
    with prepared(comparison, settings=settings) as measured:
        aucs = measure_auc(measured.rows, measured.left_in())
        coverage = measure_coverage(measured, catalogue_items=comparison.catalogue_items)
        return [*metrics_of(measured.sums(), aucs), *coverage]


def compare(
    comparison: Comparison, other: Comparison, *, settings: EvaluationConfig, ordering: str | None = None
) -> list[Metric]:
    """Measure how much better one publication is than another over the users that both have; see `differences`.

    Raises:
        InputError: they have no user in common, or as `measure` does.
    """
    ours, theirs = (c.scores.select(Col.USER_ID).distinct() for c in (comparison, other))
    both = ours.join(theirs, on=Col.USER_ID, how="inner").persist()
    try:
        if both.isEmpty():
            raise InputError(
                f"runs {comparison.run_id} and {other.run_id} published no user in common: nothing to compare"
            )
        depth = min(_published_k(c.scores) for c in (comparison, other))
        sums = []
        for side in (comparison, other):
            with prepared(_of_users(side, both), settings=settings, published_k=depth) as measured:
                sums.append(measured.sums())
    finally:
        both.unpersist()
    return list(differences(*sums, ordering=ordering or f"against:{other.run_id}"))


@contextmanager
def prepared(
    comparison: Comparison, *, settings: EvaluationConfig, published_k: int | None = None
) -> Iterator[Measured]:
    """Join the pairs of a publication and decide what is summed of them; they are kept while this lasts.

    Raises:
        InputError: fewer places are published than the smallest k wants, or there are too many segments.
    """
    kept: list[DataFrame] = []

    def keep(df: DataFrame) -> DataFrame:
        kept.append(df.persist())
        return kept[-1]

    try:
        published, truth = keep(published_pairs(comparison.scores, task=comparison.task)), keep(comparison.truth)
        counted = _count_published(published)
        depth = published_k or counted.depth
        popularity, declared = keep(comparison.popularity), settings.segments
        sources = sources_of(usable_candidates(comparison.candidates))
        segments = user_segments(
            comparison.candidates.select(Col.USER_ID).union(published.select(Col.USER_ID)).union(
                truth.select(Col.USER_ID)
            ).distinct(),
            events=comparison.events,
            cut_points=declared.history_length,
            attributes=comparison.attributes,
            columns=declared.user,
        )  # fmt: skip
        top = top_item(truth) if settings.without_top_item else None
        joined = Joined(
            candidates=comparison.candidates,
            sources=sources,
            published=published,
            truth=truth,
            picked=comparison.picked,
            popularity=popularity,
            bands=_thresholds(popularity, list(declared.popularity.values())),
            segments=segments.rows,
            top=top,
        )
        plan = Plan(
            ks=_cuts(settings.ks, depth),
            published_k=depth,
            user_segments=segments.names,
            pair_segments=_pair_segments(sources, declared.popularity),
            without_top_item=top is not None,
            calibration_edges=_equal_mass(counted.logits, bins=settings.calibration_bins),
            auc_edges=_auc_edges(counted.scores),
            active_users=comparison.active_users,
            replicates=settings.replicates,
        )
        yield Measured(keep(user_rows(joined, seed=settings.seed)), plan)
    finally:
        for df in kept:
            df.unpersist()


def measure_coverage(measured: Measured, *, catalogue_items: int) -> Iterator[Metric]:
    """Catalogue coverage: share of the catalogue's items that stand among the first k of any user. One Spark job.

    Of the model's ordering and of retrieval order, over all users and over those of each segment.
    """
    plan = measured.plan
    segments = {ALL: F.lit(True)} | {
        name: F.array_contains("segments", F.lit(n)) for n, name in enumerate(plan.user_segments)
    }
    pairs = measured.rows.select("segments", F.explode(F.arrays_zip(Col.ITEM_ID, "rank", "place")).alias("pair"))
    columns = {
        (segment, ordering): f"{ordering}_{number}"
        for number, segment in enumerate(segments)
        for ordering in (MODEL, RETRIEVAL)
    }
    fields = {MODEL: "pair.rank", RETRIEVAL: "pair.place"}
    best = [F.min(F.when(segments[s], F.col(fields[o]))).alias(name) for (s, o), name in columns.items()]
    items = pairs.groupBy(f"pair.{Col.ITEM_ID}").agg(*best)
    within = [F.count_if(F.col(name) <= k).alias(f"{name}_{k}") for name in columns.values() for k in plan.ks]
    row = items.agg(*within).collect()[0]
    for (segment, ordering), name in columns.items():
        for k in plan.ks if catalogue_items else ():
            share = row[f"{name}_{k}"] / catalogue_items
            yield Metric(ordering, "catalogue_coverage", k, segment, share, None, None, catalogue_items)


def _of_users(comparison: Comparison, users: DataFrame) -> Comparison:
    """Leave out all other users; popularity and the catalogue stay."""

    def of(df: DataFrame) -> DataFrame:
        return df.join(users, on=Col.USER_ID, how="left_semi")

    picked = None if comparison.picked is None else of(comparison.picked)
    return replace(
        comparison,
        scores=of(comparison.scores),
        candidates=of(comparison.candidates),
        truth=of(comparison.truth),
        picked=picked,
    )


def _published_k(scores: DataFrame) -> int:
    """Return the deepest place that is published."""
    return scores.agg(F.max(F.array_max(f"{Col.RANKED}.{Col.RANK}"))).collect()[0][0] or 0


def _cuts(ks: Sequence[int], published_k: int) -> tuple[int, ...]:
    known = tuple(k for k in ks if k <= published_k)
    # What stands below is not known.
    if not known:
        raise InputError(f"the best {published_k} are published, fewer than any of evaluation.ks {list(ks)}")
    return known


def _pair_segments(sources: Sequence[str], bands: Mapping[str, float]) -> tuple[str, ...]:
    names = [*(f"source:{source}" for source in sources), *(f"popularity:{band}" for band in band_names(list(bands)))]
    if len(names) > _MOST_PAIR_SEGMENTS:
        raise InputError(
            f"candidates have {len(sources)} sources: with the bands of popularity that is {len(names)} segments of "
            f"pairs, and at most {_MOST_PAIR_SEGMENTS} are kept apart"
        )
    return tuple(names)


def _thresholds(popularity: DataFrame, shares: Sequence[float]) -> list[float]:
    if not shares:
        return []
    # As many rows as there are different numbers of users.
    counted = popularity.groupBy("value").agg(F.count(F.lit(1)).alias("items")).collect()
    return band_thresholds({row["value"]: row["items"] for row in counted}, shares)


@dataclass(frozen=True)
class _Published:
    """How many places are published, and the pairs counted on a grid of 1 / 64 of a score, and of a logit."""

    depth: int
    scores: Mapping[int, int]
    logits: Mapping[int, int]


def _count_published(published: DataFrame) -> _Published:
    """Count the published pairs; one Spark job."""
    places = []
    for column in ("score", "logit"):
        clamped = F.greatest(F.least(F.col(column), F.lit(_LARGEST)), F.lit(-_LARGEST))
        places.append(F.struct(F.lit(column).alias("of"), F.floor(clamped * _GRID).alias("bin")))
    placed = published.select("rank", F.explode(F.array(*places)).alias("place")).where(F.col("place.bin").isNotNull())
    counted = placed.groupBy("place.of", "place.bin").agg(
        F.count(F.lit(1)).alias("pairs"), F.max("rank").alias("depth")
    )
    rows = counted.collect()
    scores, logits = ({row["bin"]: row["pairs"] for row in rows if row["of"] == of} for of in ("score", "logit"))
    return _Published(max((row["depth"] for row in rows), default=0), scores, logits)


def _equal_mass(counts: Mapping[int, int], *, bins: int) -> tuple[float, ...]:
    """Return the values that part what was counted into at most that many bins of about equal counts."""
    edges: list[float] = []
    total, seen = sum(counts.values()), 0
    for place in sorted(counts):
        if seen and seen * bins >= total * (len(edges) + 1):
            edges.append(place / _GRID)
        seen += counts[place]
    return tuple(edges)


def _auc_edges(scores: Mapping[int, int]) -> dict[str, tuple[float, ...]]:
    """Return what parts the values of each ordering into bins; whatever tells most values apart will do."""
    doubling = [2 ** (step / 2) for step in range(_AUC_BINS)]
    return {
        MODEL: _equal_mass(scores, bins=_AUC_BINS),
        RETRIEVAL: tuple(-value for value in reversed(doubling)),
        POPULARITY: tuple(doubling),
        RANDOM: tuple(math.ldexp(step / _AUC_BINS - 0.5, 64) for step in range(1, _AUC_BINS)),
    }
