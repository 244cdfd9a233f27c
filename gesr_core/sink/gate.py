"""The gate: what must hold of the staged shards before a `ds` is published, in one pass over them. Driver only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.config import GateConfig
from gesr_core.names import Col, logit
from gesr_core.schema import NO_CANDIDATES


@dataclass(frozen=True)
class GateCheck:
    """One number, its bound, and what to do when it is out of bounds."""

    name: str
    value: float
    bound: str
    passed: bool
    remedy: str

    def __str__(self) -> str:
        return f"{self.name} is {self.value:g}, bound {self.bound}"


@dataclass(frozen=True)
class StagedCounts:
    """What the accepted staging rows hold."""

    users: int
    users_hash: int
    users_scored: int
    candidates_in: int
    candidates_scored: int
    candidates_rejected: int
    scores_not_finite: int
    largest_score: float


@dataclass(frozen=True)
class CandidateCounts:
    """What the pinned `candidates` of the `ds` hold; a null user counts as one user."""

    users: int
    users_hash: int
    candidates: int


def count_staged(rows: DataFrame, *, tasks: Sequence[str]) -> StagedCounts:
    """Count the accepted staging rows in one pass."""
    ranked, rejected = F.col(Col.RANKED), F.col(Col.REJECTED)
    numbers = [Col.SCORE, *map(logit, tasks)]

    def not_finite(pair: Column) -> Column:
        found = F.lit(False)
        for name in numbers:
            found = found | pair[name].isNull() | F.isnan(pair[name]) | (F.abs(pair[name]) == float("inf"))
        return found

    row = rows.agg(
        F.count(F.lit(1)).alias("users"),
        _users_hash().alias("users_hash"),
        _total(F.when(F.size(ranked) > 0, 1)).alias("users_scored"),
        _total(F.col(Col.CANDIDATES_IN)).alias("candidates_in"),
        _total(F.col(Col.CANDIDATES_SCORED)).alias("candidates_scored"),
        _total(F.size(F.filter(rejected, lambda e: e[Col.REASON] != NO_CANDIDATES))).alias("candidates_rejected"),
        _total(F.size(F.filter(ranked, not_finite))).alias("scores_not_finite"),
        F.coalesce(F.max(F.array_max(F.transform(ranked, lambda p: F.abs(p[Col.SCORE])))), F.lit(0.0)).alias("largest"),
    ).collect()[0]
    return StagedCounts(
        users=row["users"],
        users_hash=int(row["users_hash"]),
        users_scored=row["users_scored"],
        candidates_in=row["candidates_in"],
        candidates_scored=row["candidates_scored"],
        candidates_rejected=row["candidates_rejected"],
        scores_not_finite=row["scores_not_finite"],
        largest_score=float(row["largest"]),
    )


def count_candidates(candidates: DataFrame) -> CandidateCounts:
    """Count the users and pairs of one `ds` of `candidates`."""
    pairs = F.when(F.col(Col.CANDIDATES).isNotNull(), F.size(Col.CANDIDATES)).otherwise(0)
    per_user = candidates.groupBy(Col.USER_ID).agg(F.sum(pairs).alias("pairs"))
    row = per_user.agg(
        F.count(F.lit(1)).alias("users"), _users_hash().alias("users_hash"), _total(F.col("pairs")).alias("pairs")
    ).collect()[0]
    return CandidateCounts(row["users"], int(row["users_hash"]), row["pairs"])


def check_gate(staged: StagedCounts, candidates: CandidateCounts, *, bounds: GateConfig) -> list[GateCheck]:
    """Compare the counts with their bounds."""
    rejected_share = staged.candidates_rejected / max(1, staged.candidates_in)
    same_users = staged.users == candidates.users and staged.users_hash == candidates.users_hash
    unexplained = staged.candidates_in - staged.candidates_scored - staged.candidates_rejected
    again = "start the job again; if it stays, this is a defect of the job: report it with the ledger's rows"
    return [
        GateCheck("users missing or doubled", float(not same_users), "0", same_users, again),
        GateCheck(
            "candidates lost on the way in",
            candidates.candidates - staged.candidates_in,
            "0",
            candidates.candidates == staged.candidates_in,
            again,
        ),
        GateCheck("candidates neither scored nor quarantined", unexplained, "0", unexplained == 0, again),
        GateCheck(
            "scores that are not finite",
            staged.scores_not_finite,
            "0",
            staged.scores_not_finite == 0,
            "look at the checkpoint's metrics and at NaN or huge values in the features",
        ),
        GateCheck(
            "largest absolute score",
            staged.largest_score,
            f"{bounds.max_abs_score:g}",
            staged.largest_score <= bounds.max_abs_score,
            "look for a feature whose scale changed, or raise gate.max_abs_score",
        ),
        GateCheck(
            "share of candidates quarantined",
            rejected_share,
            f"{bounds.max_quarantined_share:g}",
            rejected_share <= bounds.max_quarantined_share,
            "count the reasons in staging (column rejected), mend the input, or raise gate.max_quarantined_share",
        ),
        GateCheck(
            "users with scores", staged.users_scored, "at least 1", staged.users_scored > 0, "look at candidates"
        ),
    ]


def _users_hash() -> Column:
    return F.coalesce(F.sum(F.xxhash64(Col.USER_ID).cast("decimal(38,0)")), F.lit(0).cast("decimal(38,0)"))


def _total(column: Column) -> Column:
    return F.coalesce(F.sum(column), F.lit(0)).cast("bigint")
