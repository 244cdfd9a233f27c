"""Corrected losses, NE and AUC, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gesr_core.training.measures import Measures, auc, listwise_losses, normalised_entropy, task_losses


def test_the_correction_finds_the_true_rate_from_thinned_negatives() -> None:
    # Of 1,000 pairs 10 have the label of task 0 and 5 of them that of task 1; a tenth of the other 990 was kept.
    labels = torch.tensor([[1.0, 1.0]] * 5 + [[1.0, 0.0]] * 5 + [[0.0, 0.0]] * 99).view(1, 109, 2)
    logit_S = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit_S], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        rate_BN, weight_BN = torch.full((1, 109), 0.1), torch.ones(1, 109)
        logits = logit_S.expand(1, 109, 2)
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


def test_the_listwise_loss_is_a_softmax_over_the_list_of_each_request() -> None:
    torch.manual_seed(0)
    logits_BNS, labels_BNS = torch.randn(6, 9, 2), (torch.rand(6, 9, 2) < 0.3).float()
    labels_BNS[0] = 0
    rate_BN, exposed_BN = torch.rand(6, 9).clamp_min(0.05), torch.rand(6, 9) < 0.8
    exposed_BN[1] = False
    found_BS = listwise_losses(logits_BNS, labels_BNS, rate_BN=rate_BN, exposed_BN=exposed_BN)
    for b in range(6):
        listed = [n for n in range(9) if exposed_BN[b, n]]
        for s in range(2):
            positives = [n for n in listed if labels_BNS[b, n, s]]
            stands_for = {n: 1.0 if labels_BNS[b, n].any() else 1 / float(rate_BN[b, n]) for n in listed}
            total = sum(stands_for[n] * math.exp(logits_BNS[b, n, s]) for n in listed)
            each = [math.log(total) - float(logits_BNS[b, n, s]) for n in positives]
            expected = sum(each) / len(each) if each else 0.0
            assert float(found_BS[b, s]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_request_without_a_label_or_without_a_list_has_no_listwise_gradient() -> None:
    logits_BNS = torch.randn(3, 4, 1, requires_grad=True)
    labels_BNS = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]).view(3, 4, 1)
    exposed_BN = torch.tensor([True, False, True]).view(3, 1).expand(3, 4)
    listwise_losses(logits_BNS, labels_BNS, rate_BN=torch.full((3, 4), 0.5), exposed_BN=exposed_BN).sum().backward()
    assert logits_BNS.grad is not None
    assert (logits_BNS.grad[:2] == 0).all()
    assert (logits_BNS.grad[2] != 0).all()


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
    measures.add(logits, labels, rate_BN=torch.tensor([[0.5, 0.5, 0.0]]), kept_BN=kept_BN)
    ne, area = measures.results()
    assert area == [1.0]
    assert measures.weights[0].tolist() == [1.0, 2.0]
    assert math.isfinite(ne[0])
