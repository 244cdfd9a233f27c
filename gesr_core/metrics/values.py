"""Metrics, and differences of two publications, from sums over users. numpy alone; driver only.

Legend: R replicates, the data themselves before them (`bootstrap.py`); B bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from gesr_core.metrics.bootstrap import interval
from gesr_core.metrics.ranking import ALL, MODEL, Metric
from gesr_core.metrics.user_sums import Plan, Totals

SOURCE: Final = "source:"
# What may be compared between two models: what is measured on pairs that the model chose may not.
COMPARED: Final = frozenset(
    {"recall", "ndcg", "mrr", "recall_of_retrieved", "ndcg_of_retrieved", "novelty", "survival", "survival_of_bought"}
    | {"ranker_survival", "ranker_survival_of_picked"}
)


@dataclass(frozen=True)
class Ratio:
    """A metric that is one sum over another; `n` is the sum that says of how many it is, `users` of how many users."""

    metric: str
    k: int | None
    above: str
    below: str
    users: str
    n: str


@dataclass(frozen=True)
class Sums:
    """The sums [R, C] of each segment and ordering of one publication."""

    plan: Plan
    totals: Totals

    def column(self, key: tuple[str, str], name: str) -> np.ndarray:
        """Return one sum, of the data and of each replicate [R]."""
        return self.totals[key][:, self.plan.columns(key[1]).index(name)]

    def bins(self, key: tuple[str, str], name: str) -> np.ndarray:
        """Return the sums of a histogram [R, B]."""
        at = [place for place, column in enumerate(self.plan.columns(key[1])) if column.partition("@")[0] == name]
        return self.totals[key][:, at]

    def ratio(self, key: tuple[str, str], ratio: Ratio) -> np.ndarray:
        """Return a metric, of the data and of each replicate [R]; NaN where there is nothing below."""
        return _over(self.column(key, ratio.above), self.column(key, ratio.below))

    def count(self, key: tuple[str, str], name: str) -> int:
        """Return a sum of the data as a number of users or pairs."""
        return round(self.column(key, name)[0])


def ratios(plan: Plan) -> list[Ratio]:
    """Return the metrics that are a ratio, in the order in which they are written."""
    found = [
        Ratio(metric, k, f"{metric}@{k}", of, of, of)
        for metric, of in (
            ("recall", "buyers"),
            ("ndcg", "buyers"),
            ("mrr", "buyers"),
            ("recall_of_retrieved", "finders"),
            ("ndcg_of_retrieved", "finders"),
            ("novelty", "listed"),
        )
        for k in plan.ks
    ]
    top = plan.published_k
    return [
        *found,
        Ratio("survival", top, "surviving", "retrieved", "finders", "retrieved"),
        Ratio("survival_of_bought", top, "surviving", "bought", "buyers", "bought"),
        Ratio("ranker_survival", top, "picked_surviving", "picked_retrieved", "pickers", "picked_retrieved"),
        Ratio("ranker_survival_of_picked", top, "picked_surviving", "picked", "pickers", "picked"),
        Ratio("gauc", None, "gauc", "gauc_pairs", "gauc_users", "gauc_users"),
    ]


def metrics_of(sums: Sums, aucs: Mapping[tuple[str, str], tuple[float, int]]) -> Iterator[Metric]:
    """Yield every metric that sums give, with its interval.

    Args:
        sums: of one publication.
        aucs: exact AUC and its pairs, as `auc.measure_auc` gives them.
    """
    for key in sorted(sums.totals):
        for ratio in ratios(sums.plan):
            if _has_meaning(key, ratio) and (n := sums.count(key, ratio.n)):
                yield _metric(key, ratio.metric, ratio.k, sums.ratio(key, ratio), sums.count(key, ratio.users), n)
        if key in aucs:
            yield _auc(sums, key, *aucs[key])
        if key[1] == MODEL and sums.count(key, "pairs"):
            yield from _entropy(sums, key)
            yield from _calibration(sums, key)


def differences(sums: Sums, other: Sums, *, ordering: str) -> Iterator[Metric]:
    """Yield the difference of every comparable metric of the model's ordering, of users that both are of.

    Both drew the same users in each replicate, so the differences are paired: for means over users, a replicate's
    difference is the mean of the users' own differences.

    Args:
        sums: of one publication.
        other: of the other, summed over the same users.
        ordering: what the rows bear as their ordering.
    """
    theirs = {(ratio.metric, ratio.k): ratio for ratio in ratios(other.plan)}
    for key in sorted(set(sums.totals) & set(other.totals)):
        for ratio in ratios(sums.plan):
            same = theirs.get((ratio.metric, ratio.k))
            if key[1] != MODEL or ratio.metric not in COMPARED or same is None or not _has_meaning(key, ratio):
                continue
            n = min(sums.count(key, ratio.n), other.count(key, same.n))
            if n:
                users = min(sums.count(key, ratio.users), other.count(key, same.users))
                value_R = sums.ratio(key, ratio) - other.ratio(key, same)
                yield _metric((key[0], ordering), f"{ratio.metric}_difference", ratio.k, value_R, users, n)


def _has_meaning(key: tuple[str, str], ratio: Ratio) -> bool:
    # What was never retrieved has no source.
    return not (key[0].startswith(SOURCE) and ratio.metric in ("survival_of_bought", "ranker_survival_of_picked"))


def _metric(key: tuple[str, str], metric: str, k: int | None, value_R: np.ndarray, users: int, n: int) -> Metric:
    low, high = interval(value_R, users=users)
    return Metric(key[1], metric, k, key[0], float(value_R[0]), low, high, n)


def _auc(sums: Sums, key: tuple[str, str], auc: float, pairs: int) -> Metric:
    """The exact value; its spread among the replicates is that of AUC in bins."""
    negatives, positives = sums.bins(key, "auc_negatives"), sums.bins(key, "auc_positives")
    below = np.cumsum(negatives, axis=1) - negatives / 2
    binned_R = _over((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))
    value_R = np.clip(binned_R - binned_R[0] + auc, 0, 1)
    return _metric(key, "auc", None, value_R, sums.count(key, "published"), pairs)


def _entropy(sums: Sums, key: tuple[str, str]) -> Iterator[Metric]:
    """Normalised entropy (mean log loss over the entropy of these pairs' own base rate), and that base rate."""
    pairs_R = sums.column(key, "pairs")
    rate_R = _over(sums.column(key, "positives"), pairs_R)
    if not 0 < rate_R[0] < 1:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy_R = -(rate_R * np.log(rate_R) + (1 - rate_R) * np.log(1 - rate_R))
    users, pairs = sums.count(key, "published"), round(pairs_R[0])
    yield _metric(key, "ne", None, _over(_over(sums.column(key, "loss"), pairs_R), entropy_R), users, pairs)
    yield _metric(key, "base_rate", None, rate_R, users, pairs)


def _calibration(sums: Sums, key: tuple[str, str]) -> Iterator[Metric]:
    """The error, and of all pairs the curve; a bin's number counts from 1, empty ones are absent.

    The error has no interval: whatever is drawn adds to it, so that the replicates lie above the value.
    """
    pairs_RB, predicted_RB, positives_RB = (
        sums.bins(key, name) for name in ("bin_pairs", "bin_predicted", "bin_positives")
    )
    gap = np.abs(predicted_RB[0] - positives_RB[0]).sum() / pairs_RB[0].sum()
    yield Metric(MODEL, "calibration_error", None, key[0], float(gap), None, None, round(pairs_RB[0].sum()))
    if key[0] != ALL:
        return
    users = sums.count(key, "published")
    for place in np.flatnonzero(pairs_RB[0]):
        for metric, of_RB in (("calibration_predicted", predicted_RB), ("calibration_observed", positives_RB)):
            value_R = _over(of_RB[:, place], pairs_RB[:, place])
            yield _metric(key, metric, int(place) + 1, value_R, users, round(pairs_RB[0, place]))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing below."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
