"""What a retrieval and the impressions made from it are like. Driver only; each function runs one Spark job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, functions as F

from gesr_core.names import Col


@dataclass(frozen=True)
class RetrievalRecall:
    """Recall over the users that have candidates and at least one labelled item; users without candidates beside it."""

    users: int
    pairs: int
    mean_per_user: float
    of_all_pairs: float
    users_without_candidates: int

    def __str__(self) -> str:
        return (
            f"{self.mean_per_user:.4f} mean per user, {self.of_all_pairs:.4f} of all {self.pairs:,} pairs, "
            f"{self.users:,} users ({self.users_without_candidates:,} more have no candidates)"
        )


def retrieval_recall(candidates: DataFrame, positives: DataFrame) -> RetrievalRecall:
    """Compare (user_id, candidates) with the wanted pairs (user_id, item_id), each given once."""
    retrieved = candidates.select(Col.USER_ID, F.col(f"{Col.CANDIDATES}.{Col.ITEM_ID}").alias("ids"))
    found = F.array_contains("ids", F.col(Col.ITEM_ID)).cast("int")
    per_user = (
        positives.join(retrieved, on=Col.USER_ID, how="left")
        .groupBy(Col.USER_ID)
        .agg(F.sum(found).alias("found"), F.count("*").alias("pairs"))
    )
    known = F.col("found").isNotNull()
    row = per_user.agg(
        F.count_if(known).alias("users"),
        F.sum(F.when(known, F.col("pairs"))).alias("pairs"),
        F.sum("found").alias("found"),
        F.avg(F.col("found") / F.col("pairs")).alias("mean_per_user"),
        F.count_if(~known).alias("users_without_candidates"),
    ).first()
    values = row.asDict() if row else {}
    pairs = values.get("pairs") or 0
    return RetrievalRecall(
        users=values.get("users") or 0,
        pairs=pairs,
        mean_per_user=values.get("mean_per_user") or 0.0,
        of_all_pairs=(values.get("found") or 0) / pairs if pairs else 0.0,
        users_without_candidates=values.get("users_without_candidates") or 0,
    )


def summarise_impressions(impressions: DataFrame, *, labels: Sequence[str]) -> list[str]:
    """Describe each date's impressions in a line: exposed and unexposed rows, and each label's count and base rate.

    A base rate is that of the candidates before negatives were thinned out: a row without any label stands for
    sampling_weight / sampling_rate of them.
    """
    exposed = F.col(Col.EXPOSED)
    labelled = F.greatest(*(F.col(name) for name in labels), F.lit(0)) == 1
    of_pair = F.when(labelled, 1.0).otherwise(1.0 / F.col(Col.SAMPLING_RATE).cast("double"))
    stands_for = of_pair * F.col(Col.SAMPLING_WEIGHT)
    rows = (
        impressions.groupBy(Col.DS)
        .agg(
            F.count_distinct(Col.USER_ID).alias("users"),
            F.count_if(exposed).alias("exposed"),
            F.count_if(~exposed).alias("unexposed"),
            F.sum(F.when(exposed, stands_for)).alias("candidates"),
            *(F.sum(name).alias(name) for name in labels),
        )
        .orderBy(Col.DS)
        .collect()
    )
    return [_line(row.asDict(), labels) for row in rows]


def _line(row: dict[str, Any], labels: Sequence[str]) -> str:
    rates = (f"{name} {row[name]:,} (base rate {row[name] / (row['candidates'] or 1):.5f})" for name in labels)
    counts = f"{row['users']:,} users, {row['exposed']:,} exposed, {row['unexposed']:,} unexposed"
    return f"{row[Col.DS]}: {counts}; {', '.join(rates)}"
