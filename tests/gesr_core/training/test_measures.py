"""Corrected losses, NE and AUC, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gesr_core.training.measures import Measures, auc, normalised_entropy, task_losses


@pytest.mark.parametrize("others", [[1.0] * 99, [1.0] * 39 + [5.0] * 12])
def test_the_correction_finds_the_true_rate_from_thinned_negatives(others: list[float]) -> None:
    # Of 1,000 pairs 10 have the label of task 0 and 5 of them that of task 1; a tenth of the other 990 was kept, some
    # of users who stand for five.
    pairs = 10 + len(others)
    labels = torch.tensor([[1.0, 1.0]] * 5 + [[1.0, 0.0]] * 5 + [[0.0, 0.0]] * len(others)).view(1, pairs, 2)
    weight_BN = torch.tensor([[1.0] * 10 + others])
    logit_S = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit_S], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        rate_BN = torch.full((1, pairs), 0.1)
        logits = logit_S.expand(1, pairs, 2)
        loss = task_losses(logits, labels, rate_BN=rate_BN, weight_BN=weight_BN, divisor=weight_BN.sum()).sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert logit_S.sigmoid().tolist() == pytest.approx([10 / 1000, 5 / 1000], rel=1e-3)


def test_padding_has_no_influence_on_the_loss() -> None:
    logits, labels = torch.randn(2, 3, 1), torch.tensor([[[1.0], [0.0], [1.0]], [[0.0], [1.0], [0.0]]])
    weight_BN = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    rate_BN = torch.where(weight_BN > 0, 0.5, 0.0)
    before = task_losses(logits, labels, rate_BN=rate_BN, weight_BN=weight_BN, divisor=weight_BN.sum())
    logits = torch.where(weight_BN.unsqueeze(-1) > 0, logits, 1e3)
    after = task_losses(logits, labels, rate_BN=rate_BN, weight_BN=weight_BN, divisor=weight_BN.sum())
    assert torch.equal(before, after)
    assert after.isfinite().all()


def test_ne_is_1_at_the_base_rate_and_weighs_thinned_pairs() -> None:
    label_V, weight_V = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 9.0], dtype=torch.float64)
    base = torch.full((2,), math.log(0.1 / 0.9), dtype=torch.float64)
    assert normalised_entropy(base, label_V, weight_V) == pytest.approx(1.0)
    better = torch.tensor([0.0, -3.0], dtype=torch.float64)
    expected = (math.log(2) + 9 * math.log1p(math.exp(-3))) / 10 / -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert normalised_entropy(better, label_V, weight_V) == pytest.approx(expected)


def test_auc_counts_ties_half_and_weighs_pairs() -> None:
    logit_V = torch.tensor([2.0, 1.0, 1.0, 0.0])
    label_V = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert auc(logit_V, label_V, torch.tensor([1.0, 1.0, 2.0, 5.0], dtype=torch.float64)) == pytest.approx(6 / 8)


def test_measures_see_only_what_is_kept() -> None:
    measures = Measures()
    logits, labels = torch.tensor([[[1.0], [0.0], [9.0]]]), torch.tensor([[[1.0], [0.0], [0.0]]])
    kept_BN = torch.tensor([[True, True, False]])
    rate_BN, weight_BN = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[3.0, 5.0, 0.0]])
    measures.add(logits, labels, rate_BN=rate_BN, weight_BN=weight_BN, kept_BN=kept_BN)
    ne, area = measures.results()
    assert area == [1.0]
    assert measures.weights[0].tolist() == [3.0, 10.0]
    assert math.isfinite(ne[0])
