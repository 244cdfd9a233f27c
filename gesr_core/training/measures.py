"""Losses and validation measures on thinned negatives. Torch only; runs anywhere.

A group of pairs keeps every pair with a label and each other one with a probability r. Then the logit among the kept
pairs is the true one minus ln r (prior correction, King and Zeng 2001), as in `task_losses`; a mean weighs
what was thinned by 1 / r, as in `Measures`. Either weighs a pair besides by how many users its user stands for.

Legend: B requests, N candidates, S tasks, V pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


def task_losses(
    logits_BNS: Tensor, labels_BNS: Tensor, *, rate_BN: Tensor, weight_BN: Tensor, divisor: Tensor
) -> Tensor:
    """Return the weighted binary cross entropy per task [S], corrected for the thinning; padding has weight 0.

    `divisor` makes its sum a mean: the weights of the whole batch, of which this may be a part.

    A pair without this task's label but with another's was kept for certain; its weight r makes it as rare as the other
    pairs without this label (ours: the plain correction holds for one task).
    """
    shift_BN1 = -rate_BN.clamp_min(1e-12).log().unsqueeze(-1)
    losses_BNS = F.binary_cross_entropy_with_logits(logits_BNS + shift_BN1, labels_BNS, reduction="none")
    kept_BN1 = labels_BNS.amax(-1, keepdim=True) > 0
    weight_BNS = torch.where(kept_BN1 & (labels_BNS == 0), rate_BN.unsqueeze(-1), 1.0) * weight_BN.unsqueeze(-1)
    return (losses_BNS * weight_BNS).sum((0, 1)) / divisor


@dataclass
class Measures:
    """Collects exposed pairs of validation requests; `results` gives NE and AUC per task."""

    logits: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    def add(
        self, logits_BNS: Tensor, labels_BNS: Tensor, *, rate_BN: Tensor, weight_BN: Tensor, kept_BN: Tensor
    ) -> None:
        """Add the pairs where `kept_BN` is true; `weight_BN` is that of their users."""
        labels_VS = labels_BNS[kept_BN]
        has_label_V = labels_VS.amax(-1) > 0
        # On the CPU: of all validation pairs together, a GPU has no need.
        self.logits.append(logits_BNS[kept_BN].cpu().double())
        self.labels.append(labels_VS.cpu().double())
        stands_for_V = torch.where(has_label_V, 1.0, 1.0 / rate_BN[kept_BN]) * weight_BN[kept_BN]
        self.weights.append(stands_for_V.cpu().double())

    def results(self) -> tuple[list[float], list[float]]:
        """Return NE and AUC per task; NaN where a task has one class only."""
        logits_VS, labels_VS, weight_V = torch.cat(self.logits), torch.cat(self.labels), torch.cat(self.weights)
        tasks = range(logits_VS.shape[1])
        return (
            [normalised_entropy(logits_VS[:, s], labels_VS[:, s], weight_V) for s in tasks],
            [auc(logits_VS[:, s], labels_VS[:, s], weight_V) for s in tasks],
        )


def normalised_entropy(logit_V: Tensor, label_V: Tensor, weight_V: Tensor) -> float:
    """Return the weighted mean log loss divided by that of the base rate; lower is better, 1 is the base rate."""
    total = weight_V.sum()
    base = (weight_V * label_V).sum() / total
    loss = (weight_V * F.binary_cross_entropy_with_logits(logit_V, label_V, reduction="none")).sum() / total
    entropy = -(base * base.log() + (1 - base) * (-base).log1p())
    return float(loss / entropy)


def auc(logit_V: Tensor, label_V: Tensor, weight_V: Tensor) -> float:
    """Return the weighted probability that a pair with the label has the higher logit; ties count half."""
    positive_V, negative_V = weight_V * label_V, weight_V * (1 - label_V)
    _, group_V = torch.unique(logit_V, return_inverse=True)
    groups = int(group_V.max()) + 1 if len(group_V) else 0
    positive_G = torch.zeros(groups, dtype=torch.float64).index_add_(0, group_V, positive_V)
    negative_G = torch.zeros(groups, dtype=torch.float64).index_add_(0, group_V, negative_V)
    below_G = negative_G.cumsum(0) - negative_G
    return float((positive_G * (below_G + negative_G / 2)).sum() / (positive_G.sum() * negative_G.sum()))
