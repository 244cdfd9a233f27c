"""The cached form of the layers against the form over the whole sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from gesr_core.model.target_attention import TargetAttention
from tests.models import random_inputs


def attention(layers: int) -> TargetAttention:
    """Layers with random weights, in float64."""
    torch.manual_seed(layers)
    stack = TargetAttention(layers=layers, width=8, heads=2, max_history=6, time_buckets=8).double().eval()
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.5)
    return stack


@given(
    layers=st.integers(1, 3),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    targets=st.integers(1, 4),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_cached_equals_uncached(layers: int, lengths: list[int], targets: int, padding: int, seed: int) -> None:
    history = random_inputs(lengths, seed=seed, padding=padding).history
    g = torch.Generator().manual_seed(seed)
    event_BTD = torch.randn(*history.row_BT.shape, 8, generator=g, dtype=torch.float64)
    token_BND = torch.randn(len(lengths), targets, 8, generator=g, dtype=torch.float64)
    stack = attention(layers)
    cached = stack.extend(stack.prefill(history, event_BTD), token_BND)
    torch.testing.assert_close(cached, stack(history, event_BTD, token_BND), rtol=0, atol=1e-9)


@pytest.mark.parametrize("what", ["position", "time"])
def test_order_and_age_of_the_events_matter(what: str) -> None:
    history = random_inputs([3]).history
    event_BTD = torch.randn(1, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    token_BND = torch.ones(1, 1, 8, dtype=torch.float64)
    stack = attention(1)
    before = stack.extend(stack.prefill(history, event_BTD), token_BND)
    if what == "position":
        event_BTD = event_BTD.flip(1)
    else:
        history = type(history)(*{**vars(history), "age_s_BT": history.age_s_BT / 1000}.values())
    assert (stack.extend(stack.prefill(history, event_BTD), token_BND) - before).abs().max() > 1e-3
