"""The gate: what must hold of the staged shards before a `ds` is published, in one pass over them. Driver only."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.config import GateConfig
from gesr_core.names import Col, logit
from gesr_core.schema import NO_CANDIDATES, UNKNOWN_ITEM
from gesr_core.sink.score_distribution import BINS_PER_UNIT, LARGEST, ScoreDistribution, population_stability

# Fewer ranked pairs than this on either side, and chance alone moves the index by as much as its bound.
LEAST_PAIRS: Final = 2_000
_AGAIN: Final = "start the job again; if it stays, this is a defect of the job: report it with the ledger's rows"


@dataclass(frozen=True)
class GateCheck:
    """One number, its bound, and what to do when it is out of bounds.

    `key` is what `--accept` takes; None: nobody may overrule it, for the job itself would be at fault.
    """

    key: str | None
    name: str
    value: float
    bound: str
    passed: bool
    remedy: str
    accepted: bool = False

    def __str__(self) -> str:
        return f"{self.name} is {self.value:g}, bound {self.bound}"

    def to_json(self) -> dict[str, Any]:
        """Return the check for the ledger."""
        return {**vars(self), "value": _number(self.value)}

    @property
    def explained(self) -> str:
        """The check with what a person can do, for the error."""
        overrule = "" if self.key is None else f"; or publish it as it is: --accept {self.key}"
        return f"{self} ({self.remedy}{overrule})"


@dataclass(frozen=True)
class StagedCounts:
    """What the accepted staging rows hold. `ranked_hash` is of (user, best K) of all users that have any."""

    users: int
    users_hash: int
    users_scored: int
    users_without_history: int
    candidates_in: int
    candidates_scored: int
    candidates_rejected: int
    unknown_items: int
    ranked: int
    ranked_hash: int
    scores_not_finite: int
    largest_score: float

    def to_json(self) -> dict[str, Any]:
        """Return the counts for the ledger; the hashes as texts, for JSON's readers have doubles."""
        counts = {name: str(value) if name.endswith("_hash") else value for name, value in asdict(self).items()}
        return {**counts, "largest_score": _number(self.largest_score)}


@dataclass(frozen=True)
class CandidateCounts:
    """What the pinned `candidates` of the `ds` hold; a null user counts as one user."""

    users: int
    users_hash: int
    candidates: int


def count_staged(rows: DataFrame, *, tasks: Sequence[str]) -> tuple[StagedCounts, ScoreDistribution]:
    """Count the accepted staging rows, and how their scores are distributed, in one pass."""
    numbers = [Col.SCORE, *map(logit, tasks)]
    # One row per ranked pair, and one for a user without any; what belongs to the user counts at the first.
    pairs = rows.select(
        user_hash(Col.USER_ID).alias("user_hash"),
        F.when(F.size(Col.RANKED) > 0, _ranking_hash()).alias("ranked_hash"),
        Col.CANDIDATES_IN,
        Col.CANDIDATES_SCORED,
        Col.HISTORY_EVENTS,
        _rejected(lambda reason: reason != NO_CANDIDATES).alias("rejected"),
        _rejected(lambda reason: reason == UNKNOWN_ITEM).alias("unknown"),
        F.posexplode_outer(Col.RANKED).alias("place", "pair"),
    )
    first = F.col("place").isNull() | (F.col("place") == 0)
    score = F.col(f"pair.{Col.SCORE}")
    not_finite = F.lit(False)
    for name in numbers:
        number = F.col(f"pair.{name}")
        not_finite = not_finite | number.isNull() | F.isnan(number) | (F.abs(number) == float("inf"))
    not_finite = not_finite & F.col("pair").isNotNull()
    clamped = F.greatest(F.least(score, F.lit(LARGEST)), F.lit(-LARGEST))
    binned = F.when(F.col("pair").isNotNull() & ~not_finite, F.floor(clamped * BINS_PER_UNIT).cast("int"))

    def per_user(column: str) -> Column:
        return F.sum(F.when(first, F.col(column)))

    groups = (
        pairs.groupBy(binned.alias("bin"))
        .agg(
            F.count_if(first).alias("users"),
            per_user("user_hash").alias("users_hash"),
            F.count_if(first & F.col("pair").isNotNull()).alias("users_scored"),
            F.count_if(first & (F.col(Col.HISTORY_EVENTS) == 0)).alias("users_without_history"),
            per_user(Col.CANDIDATES_IN).alias("candidates_in"),
            per_user(Col.CANDIDATES_SCORED).alias("candidates_scored"),
            per_user("rejected").alias("candidates_rejected"),
            per_user("unknown").alias("unknown_items"),
            F.count_if(F.col("pair").isNotNull()).alias("ranked"),
            per_user("ranked_hash").alias("ranked_hash"),
            F.count_if(not_finite).alias("scores_not_finite"),
            F.max(F.abs(score)).alias("largest"),
        )
        .collect()
    )
    summed = [name for name in StagedCounts.__dataclass_fields__ if name != "largest_score"]
    counts = StagedCounts(
        **{name: int(sum(group[name] or 0 for group in groups)) for name in summed},
        # NaN is the largest of all, as Spark's own maximum has it.
        largest_score=_largest([group["largest"] for group in groups if group["largest"] is not None]),
    )
    histogram = {group["bin"]: group["ranked"] for group in groups if group["bin"] is not None}
    return counts, ScoreDistribution.of(histogram)


def count_candidates(candidates: DataFrame) -> CandidateCounts:
    """Count the users and pairs of one `ds` of `candidates`."""
    pairs = F.when(F.col(Col.CANDIDATES).isNotNull(), F.size(Col.CANDIDATES)).otherwise(0)
    per_user = candidates.groupBy(Col.USER_ID).agg(F.sum(pairs).alias("pairs"))
    row = per_user.agg(
        F.count(F.lit(1)).alias("users"),
        F.coalesce(F.sum(user_hash(Col.USER_ID)), F.lit(0).cast("decimal(38,0)")).alias("users_hash"),
        F.coalesce(F.sum("pairs"), F.lit(0)).cast("bigint").alias("pairs"),
    ).collect()[0]
    return CandidateCounts(row["users"], int(row["users_hash"]), row["pairs"])


def check_gate(
    staged: StagedCounts,
    candidates: CandidateCounts,
    *,
    scores: ScoreDistribution,
    reference: ScoreDistribution | None,
    bounds: GateConfig,
) -> list[GateCheck]:
    """Compare the counts with their bounds.

    Args:
        staged: what was staged.
        candidates: what was to be scored.
        scores: how the staged scores are distributed.
        reference: how those of the newest earlier `ds` of the same model version were; None: there is none.
        bounds: the configured bounds.
    """
    same_users = staged.users == candidates.users and staged.users_hash == candidates.users_hash
    unexplained = staged.candidates_in - staged.candidates_scored - staged.candidates_rejected

    def exactly(name: str, value: float, ok: bool) -> GateCheck:
        return GateCheck(None, name, value, "0", ok, _AGAIN)

    def at_most(key: str, name: str, value: float, remedy: str) -> GateCheck:
        bound = getattr(bounds, key)
        # Not `value > bound`: NaN is out of bounds.
        return GateCheck(key, name, value, f"{bound:g}", value <= bound, f"{remedy}, or raise gate.{key}")

    return [
        exactly("users missing or doubled", float(not same_users), same_users),
        exactly(
            "candidates lost on the way in",
            candidates.candidates - staged.candidates_in,
            candidates.candidates == staged.candidates_in,
        ),
        exactly("candidates neither scored nor quarantined", unexplained, unexplained == 0),
        GateCheck(
            None,
            "scores that are not finite",
            staged.scores_not_finite,
            "0",
            staged.scores_not_finite == 0,
            "look at the checkpoint's metrics and at huge values in the features",
        ),
        GateCheck(
            None, "users with scores", staged.users_scored, "at least 1", staged.users_scored > 0, "look at candidates"
        ),
        at_most(
            "max_abs_score",
            "largest absolute score",
            staged.largest_score,
            "look for a feature whose scale changed",
        ),
        at_most(
            "max_quarantined_share",
            "share of candidates quarantined",
            staged.candidates_rejected / max(1, staged.candidates_in),
            "count the reasons in staging (column rejected), mend the input",
        ),
        at_most(
            "max_unknown_share",
            "share of candidates that items does not know",
            staged.unknown_items / max(1, staged.candidates_in),
            "see that export_items read the catalogue that retrieval has",
        ),
        at_most(
            "max_empty_history_share",
            "share of users without a history",
            staged.users_without_history / max(1, staged.users),
            "see that histories and candidates name users alike",
        ),
        _stability(scores, reference, bounds),
    ]


def overrule(checks: Sequence[GateCheck], accepted: Collection[str]) -> list[GateCheck]:
    """Return the checks, those marked that a person overruled; what is within its bound needs nobody's word."""
    return [replace(check, accepted=not check.passed and check.key in accepted) for check in checks]


def refused(checks: Sequence[GateCheck]) -> list[GateCheck]:
    """Return the checks that stand in the way of a publication."""
    return [check for check in checks if not (check.passed or check.accepted)]


def checks_from_json(values: Sequence[Mapping[str, Any]]) -> list[GateCheck]:
    """Take back checks from the ledger; an earlier version's had no key."""
    return [GateCheck(**{"key": None, **value, "value": float(value["value"])}) for value in values]


def user_hash(column: str) -> Column:
    """Return the hash of a user id, to be summed without overflow."""
    return F.xxhash64(column).cast("decimal(38,0)")


def ranked_hash() -> Column:
    """Return the aggregate over users with a best K that `StagedCounts.ranked_hash` is."""
    return F.sum(_ranking_hash())


def _ranking_hash() -> Column:
    return F.xxhash64(Col.USER_ID, Col.RANKED).cast("decimal(38,0)")


def _stability(scores: ScoreDistribution, reference: ScoreDistribution | None, bounds: GateConfig) -> GateCheck:
    name, key = "population stability index of the scores", "max_score_psi"
    if reference is None or min(scores.pairs, reference.pairs) < LEAST_PAIRS:
        why = "no earlier ds of this model version" if reference is None else f"fewer than {LEAST_PAIRS:,} ranked pairs"
        value = 0.0 if reference is None else population_stability(reference, scores)
        return GateCheck(key, name, value, f"none: {why}", True, "")
    value = population_stability(reference, scores)
    return GateCheck(
        key,
        name,
        value,
        f"{bounds.max_score_psi:g}",
        value <= bounds.max_score_psi,
        f"compare features and candidates with those of the ds before, or raise gate.{key}",
    )


def _number(value: float) -> float | str:
    """Return a number as JSON can have it: it knows neither NaN nor infinity."""
    return value if math.isfinite(value) else str(value)


def _rejected(of_reason: Any) -> Column:
    return F.size(F.filter(Col.REJECTED, lambda entry: of_reason(entry[Col.REASON])))


def _largest(values: Sequence[float]) -> float:
    nan = [value for value in values if value != value]
    return float(nan[0] if nan else max(values, default=0.0))
