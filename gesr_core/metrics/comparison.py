"""One publication beside other orders of the same candidates. Driver only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce

from pyspark.sql import DataFrame, functions as F

from gesr_core.config import EvaluationConfig
from gesr_core.metrics.ranking import (
    MODEL,
    ORDERINGS,
    POPULARITY,
    RANDOM,
    RETRIEVAL,
    Metric,
    chance,
    measure_calibration,
    measure_pairs,
    measure_rankings,
    one_row_per_user,
    ordered_by,
    retrieval_order,
    top_item,
)
from gesr_core.names import Col, logit


@dataclass(frozen=True)
class Comparison:
    """What is compared: the publication of one `ds`, its candidates, what was bought, items by popularity (value)."""

    run_id: str
    model_version: str
    task: str
    scores: DataFrame
    candidates: DataFrame
    truth: DataFrame
    popularity: DataFrame


def measure(comparison: Comparison, *, settings: EvaluationConfig) -> list[Metric]:
    """Measure every ordering, with and (where configured) without the window's most bought item."""
    truth = comparison.truth.persist()
    candidates = one_row_per_user(comparison.candidates).persist()
    comparison = replace(comparison, truth=truth, candidates=candidates)
    published_k = comparison.scores.agg(F.max(F.size(Col.RANKED))).collect()[0][0]
    # What stands below the published K is not known, so no cut goes deeper.
    ks = [k for k in settings.ks if k <= published_k]
    # One more than the largest cut: leaving an item out should not leave an ordering short. Where only as many are
    # published, all the orderings are one short.
    tops, retrieved = _tops(comparison, limit=min(max(ks, default=0) + 1, published_k), seed=settings.seed)
    pairs = _published_pairs(comparison, seed=settings.seed)
    cached = [truth, candidates, tops.persist(), retrieved.persist(), pairs.persist()]
    model_pairs = pairs.where(F.col("ordering") == MODEL)
    found: list[Metric] = []
    top = top_item(truth) if settings.without_top_item else None
    for item in (None,) if top is None else (None, top):
        found += measure_rankings(tops, truth, retrieved, ks=ks, without=item)
        found += measure_pairs(pairs, without=item)
        found += measure_calibration(model_pairs, without=item)
    for df in cached:
        df.unpersist()
    return found


def _tops(comparison: Comparison, *, limit: int, seed: int) -> tuple[DataFrame, DataFrame]:
    """Each ordering's best items of the users who bought something, and which bought items were retrieved."""
    truth = comparison.truth
    buyers = truth.select(Col.USER_ID).distinct()
    candidates = comparison.candidates.join(buyers, on=Col.USER_ID, how="left_semi")
    pairs = candidates.select(Col.USER_ID, F.explode(F.array_distinct("candidates.item_id")).alias(Col.ITEM_ID))
    by_popularity = pairs.join(comparison.popularity, on=Col.ITEM_ID, how="left").fillna(0.0, subset="value")
    by_chance = pairs.withColumn("value", chance(seed=seed))
    by_retrieval = retrieval_order(candidates, sources=_sources(candidates))
    by_model = comparison.scores.join(buyers, on=Col.USER_ID, how="left_semi")
    orderings = {
        MODEL: by_model.select(Col.USER_ID, F.slice(f"{Col.RANKED}.{Col.ITEM_ID}", 1, limit).alias("items")),
        RETRIEVAL: by_retrieval.select(Col.USER_ID, F.slice("items", 1, limit).alias("items")),
        POPULARITY: ordered_by(by_popularity, limit=limit),
        RANDOM: ordered_by(by_chance, limit=limit),
    }
    return _stack(orderings), pairs.join(truth, on=[Col.USER_ID, Col.ITEM_ID], how="left_semi")


def _published_pairs(comparison: Comparison, *, seed: int) -> DataFrame:
    """Every published pair with each ordering's value: the orderings are compared on the same pairs."""
    order = retrieval_order(comparison.candidates, sources=_sources(comparison.candidates))
    listed = comparison.scores.join(order, on=Col.USER_ID, how="left")
    published = listed.select(Col.USER_ID, "items", F.explode(Col.RANKED).alias("pair")).select(
        Col.USER_ID,
        F.col(f"pair.{Col.ITEM_ID}").alias(Col.ITEM_ID),
        F.col(f"pair.{Col.SCORE}").cast("double").alias(MODEL),
        F.col(f"pair.{logit(comparison.task)}").alias("logit"),
        (-F.array_position("items", F.col(f"pair.{Col.ITEM_ID}"))).cast("double").alias(RETRIEVAL),
    )
    bought = comparison.truth.withColumn("label", F.lit(1))
    popularity = comparison.popularity.withColumnRenamed("value", POPULARITY)
    labelled = (
        published.join(bought, on=[Col.USER_ID, Col.ITEM_ID], how="left")
        .join(popularity, on=Col.ITEM_ID, how="left")
        .fillna({"label": 0, POPULARITY: 0.0})
        .withColumn(RANDOM, chance(seed=seed))
    )
    values = [F.struct(F.lit(name).alias("ordering"), F.col(name).alias("value")) for name in ORDERINGS]
    long = labelled.select(Col.USER_ID, Col.ITEM_ID, "label", "logit", F.explode(F.array(*values)).alias("of"))
    return long.select(Col.USER_ID, Col.ITEM_ID, "label", "logit", "of.ordering", "of.value")


def _sources(candidates: DataFrame) -> list[str]:
    """The sources in alphabetical order, in which they take turns."""
    sources = candidates.select(F.explode(F.array_distinct("candidates.source")).alias("source")).distinct().collect()
    return sorted(row["source"] for row in sources)


def _stack(orderings: Mapping[str, DataFrame]) -> DataFrame:
    named = [df.select(Col.USER_ID, F.lit(name).alias("ordering"), "items") for name, df in orderings.items()]
    return reduce(DataFrame.unionByName, named)
