"""Both directions against loops over pairs, and what a softmax needs to say anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from gesr_core.model.cross_attention import CrossAttention, FeatureTokens
from tests.models import random_inputs

WIDTH, TOKEN_WIDTH, HEADS = 8, 6, 2
LENGTHS = [0, 1, 4, 6]


def random_cross(*, item_widths: Sequence[int] = (5,), item_numerics: int = 2) -> CrossAttention:
    """With random weights, in float64."""
    torch.manual_seed(1)
    module = CrossAttention(
        width=WIDTH, token_width=TOKEN_WIDTH, heads=HEADS, item_widths=item_widths, item_numerics=item_numerics,
        user_widths=[8, 3], user_numerics=1,
    ).double()  # fmt: skip
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


@pytest.fixture
def cross() -> CrossAttention:
    return random_cross()


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attended(query_C: Tensor, keys_LC: Tensor, values_LC: Tensor) -> Tensor:
    """Softmax attention of one query, head by head."""
    heads = []
    for q, k, v in zip(query_C.chunk(HEADS), keys_LC.chunk(HEADS, 1), values_LC.chunk(HEADS, 1), strict=True):
        heads.append(torch.softmax(k @ q / math.sqrt(len(q)), 0) @ v)
    return torch.cat(heads)


def pair(cross: CrossAttention, events_TD: Tensor, user_UC: Tensor, token_D: Tensor, tokens_FC: Tensor) -> Tensor:
    """What cross attention says of one pair, from the tokens of both sides: nothing shared, nothing padded."""
    history = torch.cat([cross.null_C.unsqueeze(0), cross.history_keys_values(events_TD)])
    found = attended(cross.item_query(token_D), *history.chunk(2, 1))
    keys_FC, values_FC = cross.item_keys_values(tokens_FC).chunk(2, 1)
    noticed = [attended(cross.user_query(user_C), keys_FC, values_FC) for user_C in user_UC]
    return cross.output(torch.cat([found, *noticed]))


# Tokens of all kinds; of two embedded features; of constants alone, or beside one number or embedding.
@pytest.mark.parametrize(("item_widths", "item_numerics"), [([5], 2), ([5, 3], 1), ([], 0), ([], 1), ([5], 0)])
def test_cached_states_give_what_loops_over_pairs_give(item_widths: list[int], item_numerics: int) -> None:
    cross = random_cross(item_widths=item_widths, item_numerics=item_numerics)
    history = random_inputs(LENGTHS).history
    events, token = drawn(4, 6, WIDTH, seed=1), drawn(4, 3, WIDTH, seed=2)
    users, user_numeric = [drawn(4, 8, seed=3), drawn(4, 3, seed=4)], drawn(4, 1, seed=5)
    items = [drawn(4, 3, width, seed=6) for width in item_widths]
    item_numeric = drawn(4, 3, item_numerics, seed=7)
    kept = cross.of_items(token, items, item_numeric)
    cache = cross.prefill(history, events, users, user_numeric)
    crossed_BND = cross.extend(cache, kept)
    user_BUC, item_BNFC = cross.user_tokens(users, user_numeric), cross.item_tokens(items, item_numeric)
    for b, length in enumerate(LENGTHS):
        for n in range(3):
            alone = pair(cross, events[b, :length], user_BUC[b], token[b, n], item_BNFC[b, n])
            torch.testing.assert_close(crossed_BND[b, n], alone, rtol=0, atol=1e-9)


def test_what_stands_at_padding_does_not_matter(cross: CrossAttention) -> None:
    user = [drawn(1, 8, seed=3), drawn(1, 3, seed=4)], drawn(1, 1, seed=5)
    kept = cross.of_items(drawn(1, 2, WIDTH, seed=2), [drawn(1, 2, 5, seed=6)], drawn(1, 2, 2, seed=7))
    events = drawn(1, 5, WIDTH, seed=1)
    short = cross.prefill(random_inputs([2]).history, events[:, :2], *user)
    padded = cross.prefill(random_inputs([2], padding=3).history, events, *user)
    torch.testing.assert_close(cross.extend(padded, kept), cross.extend(short, kept), rtol=0, atol=1e-9)


def test_users_look_at_an_item_differently(cross: CrossAttention) -> None:
    history = random_inputs([3, 3]).history
    users, numeric = [drawn(2, 8, seed=3), drawn(2, 3, seed=4)], drawn(2, 1, seed=5)
    cache = cross.prefill(history, drawn(2, 3, WIDTH, seed=1), users, numeric)
    kept = cross.of_items(drawn(1, WIDTH, seed=2), [drawn(1, 5, seed=6)], drawn(1, 2, seed=7))
    both = {name: state_RX.expand(2, 1, *state_RX.shape[1:]) for name, state_RX in kept.items()}
    weights_BHAUN = cross.user_weights(cache, both)
    torch.testing.assert_close(weights_BHAUN.sum(2), torch.ones(2, HEADS, 3, 1, dtype=torch.float64))
    assert (weights_BHAUN[0] - weights_BHAUN[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("widths", "numerics", "count"), [([], 0, 2), ([4], 0, 2), ([], 1, 2), ([4], 1, 2), ([4], 3, 4)]
)
def test_every_side_has_a_token_per_feature_and_at_least_two(widths: list[int], numerics: int, count: int) -> None:
    tokens = FeatureTokens(widths=widths, numerics=numerics, width=6)
    assert tokens.count == count
    found = tokens([torch.ones(5, 3, width) for width in widths], torch.ones(5, 3, numerics))
    assert found.shape == (5, 3, count, 6)
