"""Ranking and calibration measures of one ordering of a test set, as docs/metrics.md defines them; numpy, no JVM.

Unlike `jobs/evaluate.py`, which knows the published best K alone, AUC, GAUC and NE are over all candidate pairs, and a
thinned pair counts for as many as it stands for. Everything is kept per unit (a request), so that users can be drawn
again (bootstrap.py).

Legend: P pairs, U units (requests), S tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from benchmarks.quality.prepared import TestSet
from gesr_core.metrics.ranking import ALL, WITHOUT_TOP_ITEM
from gesr_core.training.measures import auc

K: Final = 10
SEGMENTS: Final = (ALL, WITHOUT_TOP_ITEM)
# A mean over units: (sum of values) / (sum of weights), both per unit. NE is derived from its three sums.
RATIOS: Final = ("ndcg", "recall", "gauc")


@dataclass(frozen=True)
class Sums:
    """Per unit what the measures of one segment are made of; a measure is a ratio of two sums over units.

    `ndcg_U`, `recall_U` are 0 where a unit counts and found nothing, `counted_U` says which count; `gauc_U` is already
    multiplied by its weight `gauc_weight_U`. `loss_U`, `weight_U`, `positive_U` are those of NE, zeros without logits.
    """

    ndcg_U: np.ndarray
    recall_U: np.ndarray
    counted_U: np.ndarray
    gauc_U: np.ndarray
    gauc_weight_U: np.ndarray
    loss_U: np.ndarray
    weight_U: np.ndarray
    positive_U: np.ndarray

    def values(self, draws_RU: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return each measure; with `draws_RU`, how often each resample drew each unit, one value per resample [R]."""
        draws = np.ones((1, len(self.ndcg_U))) if draws_RU is None else draws_RU

        def ratio(above_U: np.ndarray, below_U: np.ndarray) -> np.ndarray:
            return np.divide(draws @ above_U, draws @ below_U)

        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                "ndcg": ratio(self.ndcg_U, self.counted_U),
                "recall": ratio(self.recall_U, self.counted_U),
                "gauc": ratio(self.gauc_U, self.gauc_weight_U),
            }
            if self.weight_U.any():
                base = ratio(self.positive_U, self.weight_U)
                entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base))
                found["ne"] = ratio(self.loss_U, self.weight_U) / entropy
        return found


@dataclass(frozen=True)
class Measured:
    """Both segments of one ordering; AUC stands apart, because it is no ratio of sums over units."""

    sums: Mapping[str, Sums]
    auc: Mapping[str, float]

    def values(self) -> dict[str, dict[str, float]]:
        """Return the measures by segment and name."""
        return {
            segment: {name: float(value[0]) for name, value in sums.values().items()} | {"auc": self.auc[segment]}
            for segment, sums in self.sums.items()
        }


def measure(test: TestSet, score_P: np.ndarray, *, task: int = 0, logit_P: np.ndarray | None = None) -> Measured:
    """Measure an ordering (higher is better, ties go to the smaller item id) by a task's labels.

    Args:
        test: the pairs.
        score_P: what orders them.
        task: whose labels count.
        logit_P: the task's logits; None for orderings that are no probabilities: they have no NE.
    """
    sums, aucs = {}, {}
    # Sorted once, for both segments and for all that asks for an order.
    order_P = np.lexsort((test.item_P, -score_P, test.unit_P))
    for segment in SEGMENTS:
        kept_P = np.ones(len(score_P), dtype=bool) if segment == ALL else test.item_P != test.top_item
        sums[segment] = _sums(test, score_P, kept_P, order_P[kept_P[order_P]], task=task, logit_P=logit_P)
        aucs[segment] = auc(
            torch.from_numpy(score_P[kept_P].astype(np.float64)),
            torch.from_numpy(test.label_PS[kept_P, task].astype(np.float64)),
            torch.from_numpy(test.weight_P[kept_P]),
        )
    return Measured(sums, aucs)


def _sums(
    test: TestSet,
    score_P: np.ndarray,
    kept_P: np.ndarray,
    order_P: np.ndarray,
    *,
    task: int,
    logit_P: np.ndarray | None,
) -> Sums:
    """Sum up the kept pairs per unit; `order_P` has them unit by unit, the best first."""
    units = len(test.unit_U)
    ordered = test.unit_P[order_P], score_P[order_P], test.label_PS[order_P, task] > 0
    # Thinned requests have no positive: neither their ranks nor their own AUC are asked for.
    whole_P = np.bincount(ordered[0], weights=ordered[2], minlength=units)[ordered[0]] > 0
    ranked = [column[whole_P] for column in ordered]
    bought_U = _positives(test, task=task, without=None if kept_P.all() else test.top_item)
    gain_U, hits_U = _gains(ranked[0], ranked[2], units=units)
    gauc_U, gauc_weight_U = _own_aucs(*ranked, units=units)
    unit_P, label_P = test.unit_P[kept_P], test.label_PS[kept_P, task]
    weight_P = test.weight_P[kept_P]
    zeros = np.zeros(units)
    loss_P = None if logit_P is None else _log_loss(logit_P[kept_P], label_P) * weight_P
    return Sums(
        ndcg_U=gain_U / np.maximum(ideal(bought_U), 1e-300) * (bought_U > 0),
        recall_U=hits_U / np.maximum(bought_U, 1),
        counted_U=(bought_U > 0).astype(np.float64),
        gauc_U=gauc_U * gauc_weight_U,
        gauc_weight_U=gauc_weight_U,
        loss_U=zeros if loss_P is None else np.bincount(unit_P, weights=loss_P, minlength=units),
        weight_U=zeros if loss_P is None else np.bincount(unit_P, weights=weight_P, minlength=units),
        positive_U=zeros if loss_P is None else np.bincount(unit_P, weights=weight_P * label_P, minlength=units),
    )


def ideal(positives_U: np.ndarray) -> np.ndarray:
    """Return the discounted gain at K of an ordering with all of a unit's positives first."""
    discounts = 1.0 / np.log2(np.arange(2, K + 2))
    return np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(positives_U, K).astype(np.int64)]


def ranks(unit_P: np.ndarray) -> np.ndarray:
    """Return each pair's 1-based rank in its unit; pairs are sorted by unit, the best of each first."""
    starts = np.flatnonzero(np.diff(unit_P, prepend=-1))
    return np.arange(1, len(unit_P) + 1) - np.repeat(starts, np.diff(np.append(starts, len(unit_P))))


def _positives(test: TestSet, *, task: int, without: int | None) -> np.ndarray:
    """Count each unit's positives, retrieved or not."""
    kept = test.truth_label_S[:, task] > 0
    if without is not None:
        kept = kept & (test.truth_item != without)
    return np.bincount(test.truth_unit[kept], minlength=len(test.unit_U))


def _gains(unit_P: np.ndarray, positive_P: np.ndarray, *, units: int) -> tuple[np.ndarray, np.ndarray]:
    rank_P = ranks(unit_P)
    hit_P = positive_P & (rank_P <= K)
    gain = np.bincount(unit_P[hit_P], weights=1.0 / np.log2(rank_P[hit_P] + 1.0), minlength=units)
    return gain, np.bincount(unit_P[hit_P], minlength=units).astype(np.float64)


def _own_aucs(
    unit_P: np.ndarray, score_P: np.ndarray, positive_P: np.ndarray, *, units: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return each unit's AUC (ties count one half) and its number of pairs; both 0 where it has one class alone."""
    first_P = np.ones(len(unit_P), dtype=bool)
    first_P[1:] = (unit_P[1:] != unit_P[:-1]) | (score_P[1:] != score_P[:-1])
    group_P = np.cumsum(first_P) - 1
    size = np.bincount(group_P)
    # The mean rank of a group of equal scores: that of its first, and half of the others. 1 is the highest score.
    mean_rank_P = ranks(unit_P)[first_P][group_P] + (size[group_P] - 1) / 2 if len(unit_P) else np.zeros(0)
    pairs_U = np.bincount(unit_P, minlength=units).astype(np.float64)
    positives_U = np.bincount(unit_P[positive_P], minlength=units).astype(np.float64)
    rank_sum_U = np.bincount(unit_P[positive_P], weights=mean_rank_P[positive_P], minlength=units)
    negatives_U = pairs_U - positives_U
    both_U = (positives_U > 0) & (negatives_U > 0)
    # A positive at rank r has n - r pairs below it, of which those that are positives themselves are no victories.
    won_U = positives_U * pairs_U - rank_sum_U - positives_U * (positives_U - 1) / 2
    auc_U = np.where(both_U, won_U / np.maximum(positives_U * negatives_U, 1.0), 0.0)
    return auc_U, np.where(both_U, pairs_U, 0.0)


def _log_loss(logit_P: np.ndarray, label_P: np.ndarray) -> np.ndarray:
    logit = logit_P.astype(np.float64)
    return np.logaddexp(0.0, logit) - label_P * logit
