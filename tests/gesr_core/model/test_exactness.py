"""A pair's logits follow from the pair alone, for every model: ragged shapes, empty histories, float64 and float32."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from gesr_core.model.inputs import History, UserFeatures
from tests.gesr_core.model.test_build import to_float
from tests.models import CONFIGS, Inputs, random_inputs, random_model, scores


@cache
def made(name: str) -> Any:
    """A model with random weights, in float64."""
    return random_model(CONFIGS[name])


def alone(inputs: Inputs, b: int, n: int) -> Inputs:
    """The same request with one candidate, without padding and without the other requests."""
    h, length = inputs.history, int(inputs.history.length_B[b])
    row, age_s, action, value = (t[b : b + 1, :length] for t in (h.row_BT, h.age_s_BT, h.action_BT, h.value_BT))
    history = History(row, age_s, action, value, h.length_B[b : b + 1])
    user = UserFeatures(inputs.user.categorical_BC[b : b + 1], inputs.user.numeric_BF[b : b + 1])
    return replace(inputs, history=history, user=user, candidate_BN=inputs.candidate_BN[b : b + 1, n : n + 1])


@pytest.mark.parametrize("name", sorted(CONFIGS))
@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    candidates=st.integers(1, 7),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_what_stands_beside_a_pair_does_not_matter(
    name: str, lengths: list[int], candidates: int, padding: int, seed: int
) -> None:
    model = made(name)
    inputs = random_inputs(lengths, candidates=candidates, seed=seed, padding=padding)
    together_BNS = scores(model, inputs)
    assert together_BNS.isfinite().all()
    order = torch.randperm(candidates, generator=torch.Generator().manual_seed(seed))
    assert_exact(scores(model, inputs, inputs.candidate_BN[:, order]), together_BNS[:, order], atol=1e-9)
    b, n = seed % len(lengths), seed % candidates
    assert_exact(scores(model, alone(inputs, b, n))[0, 0], together_BNS[b, n], atol=1e-9)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@settings(deadline=None, max_examples=10)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_nor_does_it_beyond_rounding_in_float32(name: str, lengths: list[int], seed: int) -> None:
    model, inputs = random_model(CONFIGS[name]).float(), to_float(random_inputs(lengths, seed=seed, padding=2))
    together_BNS = scores(model, inputs)
    b = seed % len(lengths)
    assert_exact(scores(model, alone(inputs, b, 0))[0, 0], together_BNS[b, 0], atol=5e-5)


def assert_exact(found: Tensor, expected: Tensor, *, atol: float) -> None:
    """What **exact** means here: within `atol` x max(1, |logit|)."""
    assert ((found - expected).abs() <= atol * expected.abs().clamp_min(1)).all()
