"""Residual codes against a loop, where k-means and revival put them, and how use is counted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from gesr_core.model.codebook import Codebooks, squared_distances


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(levels: int, codes: int, width: int, *, seed: int = 0) -> Codebooks:
    torch.manual_seed(seed)
    return Codebooks(levels=levels, codes=codes, width=width).double()


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(2, 7), st.integers(1, 5), st.integers(0, 20), st.integers(0, 99))
def test_codes_are_the_nearest_to_what_is_left_over(
    levels: int, codes: int, width: int, latents: int, seed: int
) -> None:
    books, latent_RD = made(levels, codes, width, seed=seed), drawn(latents, width, seed=seed)
    codes_RQ = books.assign(latent_RD)
    assert codes_RQ.shape == (latents, levels)
    for latent_D, code_Q in zip(latent_RD, codes_RQ.tolist(), strict=True):
        for code_SD, code in zip(books.codes_QSD.detach(), code_Q, strict=True):
            assert code == min(range(codes), key=lambda s: float((latent_D - code_SD[s]).square().sum()))
            latent_D = latent_D - code_SD[code]


def test_the_sum_of_the_chosen_codes_comes_nearer_with_every_level() -> None:
    books, latent_RD = made(3, 8, 4), drawn(200, 4)
    books.initialise(latent_RD)
    chosen_RQD = books.vectors(books.assign(latent_RD)).detach()
    missed = [float((latent_RD - chosen_RQD[:, :levels].sum(1)).square().mean()) for levels in (1, 2, 3)]
    assert missed[0] > 1.5 * missed[1] > 2 * missed[2]


def test_initialise_finds_the_groups_that_there_are() -> None:
    centre_SD = 10 * drawn(6, 3, seed=3)
    latent_RD = centre_SD.repeat(20, 1) + 0.01 * drawn(120, 3)
    books = made(2, 6, 3)
    assert not books.ready
    books.initialise(latent_RD)
    assert books.ready
    nearest_S = squared_distances(centre_SD, books.codes_QSD[0].detach()).min(-1).values
    assert nearest_S.max() < 0.01
    again = made(2, 6, 3, seed=5)
    again.initialise(latent_RD)
    assert torch.equal(again.codes_QSD, books.codes_QSD)


def test_fewer_latents_than_codes_leave_the_other_codes_alone() -> None:
    books = made(1, 5, 3)
    before = books.codes_QSD.detach().clone()
    books.initialise(drawn(2, 3))
    assert torch.equal(books.codes_QSD[0, 2:], before[0, 2:])
    assert len(books.assign(drawn(2, 3)).unique()) == 2


def test_codes_without_an_item_are_revived_where_items_are_farthest_from_theirs() -> None:
    books = made(1, 3, 2)
    books.codes_QSD.data = torch.tensor([[[0.0, 0.0], [100.0, 100.0], [-100.0, 100.0]]], dtype=torch.float64)
    latent_RD = torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.0, 0.0], [0.0, -9.0]], dtype=torch.float64)
    assert list(books.use(books.assign(latent_RD)).utilization_Q) == pytest.approx([1 / 3])
    assert books.revive(latent_RD) == 2
    assert books.codes_QSD[0].tolist() == [[0.0, 0.0], [0.0, -9.0], [5.0, 0.0]]
    assert books.use(books.assign(latent_RD)).utilization_Q == (1.0,)
    assert books.revive(latent_RD) == 0


def test_use_counts_codes_and_their_entropy() -> None:
    use = made(2, 4, 2).use(torch.tensor([[0, 3], [1, 3], [0, 3], [1, 3]]))
    assert use.utilization_Q == (0.5, 0.25)
    assert list(use.perplexity_Q) == pytest.approx([2, 1])


def test_losses_pull_codes_to_residuals_and_residuals_to_codes() -> None:
    books, latent_RD = made(2, 3, 2), drawn(5, 2).requires_grad_()
    codes_RQ = books.assign(latent_RD.detach())
    codebook_R, commitment_R = books.losses(latent_RD, codes_RQ)
    expected = [0.0] * 5
    for r, code_Q in enumerate(codes_RQ.tolist()):
        left_D = latent_RD[r].detach()
        for level, code in enumerate(code_Q):
            left_D = left_D - books.codes_QSD[level, code].detach()
            expected[r] += float(left_D.square().sum())
    assert codebook_R.tolist() == pytest.approx(expected)
    assert commitment_R.tolist() == pytest.approx(expected)
    codebook_R.sum().backward()
    assert latent_RD.grad is None
    assert books.codes_QSD.grad is not None
    books.codes_QSD.grad = None
    commitment_R.sum().backward()
    assert books.codes_QSD.grad is None
    assert latent_RD.grad is not None


def test_perplexity_is_at_most_the_number_of_codes() -> None:
    books = made(1, 8, 2)
    use = books.use(torch.arange(8).unsqueeze(1).repeat(3, 1))
    assert use.perplexity_Q[0] == pytest.approx(8)
    assert math.isfinite(books.use(torch.zeros(0, 1, dtype=torch.int64)).perplexity_Q[0])
