"""One publication beside other orders of the same candidates. Driver only."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame, functions as F

from gesr_core.config import EvaluationConfig
from gesr_core.errors import InputError
from gesr_core.metrics.ranking import (
    ALL,
    LABEL,
    LOGIT,
    MODEL,
    ORDERINGS,
    POPULARITY,
    RANDOM,
    RETRIEVAL,
    WITHOUT_TOP_ITEM,
    Metric,
    chance,
    measure_auc,
    measure_calibration,
    measure_gauc,
    measure_rankings,
    one_row_per_user,
    rank_positives,
    retrieval_order,
    sources_of,
    top_item,
    usable_candidates,
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
    """Measure every ordering, with and (where configured) without the window's most bought item.

    Raises:
        InputError: no more pairs are published than the smallest k wants.
    """
    truth = comparison.truth.persist()
    candidates = usable_candidates(comparison.candidates)
    order = retrieval_order(one_row_per_user(candidates), sources=sources_of(candidates)).persist()
    published = _published(comparison).persist()
    pairs = _pairs(comparison, published, order, truth, seed=settings.seed).persist()
    top = top_item(truth) if settings.without_top_item else None
    segments = [ALL] if top is None else [ALL, WITHOUT_TOP_ITEM]
    published_k = published.agg(F.max("place")).collect()[0][0] or 0
    # What stands below the published K is not known, so no cut goes deeper.
    ks = [k for k in settings.ks if k <= published_k]
    if not ks:
        raise InputError(f"the best {published_k} are published, fewer than any of evaluation.ks {list(settings.ks)}")
    ranks = rank_positives(_listed(comparison, published, order, truth, seed=settings.seed), top=top)
    found = [
        *measure_rankings(truth, ranks, ks=ks, published_k=published_k, segments=segments, top=top),
        *measure_gauc(pairs, segments=segments, top=top),
        *measure_auc(pairs, segments=segments, top=top),
        *measure_calibration(pairs, segments=segments, top=top),
    ]
    for df in (truth, order, published, pairs):
        df.unpersist()
    return found


def _published(comparison: Comparison) -> DataFrame:
    """(user_id, item_id, place, score, logit) of every published pair."""
    ranked = comparison.scores.select(Col.USER_ID, F.explode(Col.RANKED).alias("pair"))
    return ranked.select(
        Col.USER_ID,
        F.col(f"pair.{Col.ITEM_ID}").alias(Col.ITEM_ID),
        F.col(f"pair.{Col.RANK}").alias("place"),
        F.col(f"pair.{Col.SCORE}").cast("double").alias(Col.SCORE),
        F.col(f"pair.{logit(comparison.task)}").alias(LOGIT),
    )


def _listed(
    comparison: Comparison, published: DataFrame, order: DataFrame, truth: DataFrame, *, seed: int
) -> DataFrame:
    """All candidates of the users for whom something that they bought was retrieved; the others' metrics are 0."""
    bought = truth.groupBy(Col.USER_ID).agg(F.collect_list(Col.ITEM_ID).alias("bought"))
    hit = order.join(bought, on=Col.USER_ID, how="inner").where(F.arrays_overlap("items", "bought"))
    listed = hit.select(
        Col.USER_ID,
        F.posexplode("items").alias("place", Col.ITEM_ID),
        F.col("bought"),
    ).select(
        Col.USER_ID,
        Col.ITEM_ID,
        F.array_contains("bought", F.col(Col.ITEM_ID)).cast("int").alias(LABEL),
        (-F.col("place")).cast("double").alias(RETRIEVAL),
    )
    ranked = published.select(Col.USER_ID, Col.ITEM_ID, (-F.col("place")).cast("double").alias(MODEL))
    return _with_values(
        listed.join(ranked, on=[Col.USER_ID, Col.ITEM_ID], how="left"), comparison.popularity, seed=seed
    )


def _pairs(comparison: Comparison, published: DataFrame, order: DataFrame, truth: DataFrame, *, seed: int) -> DataFrame:
    """Every published pair with each ordering's value: the orderings are compared on the same pairs."""
    bought = truth.withColumn(LABEL, F.lit(1))
    pairs = published.join(order, on=Col.USER_ID, how="inner").select(
        Col.USER_ID,
        Col.ITEM_ID,
        LOGIT,
        F.col(Col.SCORE).alias(MODEL),
        (-F.array_position("items", F.col(Col.ITEM_ID))).cast("double").alias(RETRIEVAL),
    )
    labelled = pairs.join(bought, on=[Col.USER_ID, Col.ITEM_ID], how="left").fillna(0, subset=LABEL)
    return _with_values(labelled, comparison.popularity, seed=seed, keep=[LOGIT])


def _with_values(
    df: DataFrame, popularity: DataFrame, *, seed: int, keep: tuple[str, ...] | list[str] = ()
) -> DataFrame:
    named = popularity.withColumnRenamed("value", POPULARITY)
    valued = df.join(named, on=Col.ITEM_ID, how="left").fillna(0.0, subset=POPULARITY)
    return valued.withColumn(RANDOM, chance(seed=seed)).select(Col.USER_ID, Col.ITEM_ID, LABEL, *ORDERINGS, *keep)
