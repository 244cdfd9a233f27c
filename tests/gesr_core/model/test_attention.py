"""Softmax attention against a loop over queries, and what padding and an empty history do to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gesr_core.model.attention import Attention

WIDTH, HEADS = 6, 2
LENGTH_B = torch.tensor([0, 1, 4])


def made() -> Attention:
    torch.manual_seed(0)
    attention = Attention(width=WIDTH, heads=HEADS).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.7)
    return attention


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped(attention: Attention, events_TD: Tensor, query_D: Tensor) -> Tensor:
    """One query to one history, head by head."""
    events_TD = torch.cat([attention.null_D.unsqueeze(0), events_TD])
    keys, values = attention.key(events_TD).chunk(HEADS, 1), attention.value(events_TD).chunk(HEADS, 1)
    heads = zip(attention.query(query_D).chunk(HEADS), keys, values, strict=True)
    return torch.cat([torch.softmax(normed(k) @ normed(q) / math.sqrt(len(q)), 0) @ v for q, k, v in heads])


def normed(row: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last dimension."""
    centred = row - row.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_attention_is_what_a_loop_over_queries_gives() -> None:
    attention, events_BTD, query_BLD = made(), drawn(3, 4, WIDTH), drawn(3, 2, WIDTH, seed=2)
    attended_BLD = attention.ask(attention.see(events_BTD, torch.arange(4) < LENGTH_B.unsqueeze(1)), query_BLD)
    for b, length in enumerate(LENGTH_B.tolist()):
        for n in range(2):
            expected_D = looped(attention, events_BTD[b, :length], query_BLD[b, n])
            torch.testing.assert_close(attended_BLD[b, n], expected_D, rtol=0, atol=1e-9)


def test_the_same_queries_may_be_put_to_every_history() -> None:
    attention, events_BTD, query_1LD = made(), drawn(3, 4, WIDTH), drawn(1, 2, WIDTH, seed=2)
    seen = attention.see(events_BTD, torch.arange(4) < LENGTH_B.unsqueeze(1))
    torch.testing.assert_close(attention.ask(seen, query_1LD), attention.ask(seen, query_1LD.expand(3, -1, -1)))


def test_what_stands_at_padding_has_no_influence() -> None:
    attention, events_BTD, query_BLD = made(), drawn(3, 4, WIDTH), drawn(3, 2, WIDTH, seed=2)
    valid_BT = torch.arange(4) < LENGTH_B.unsqueeze(1)
    changed_BTD = torch.where(valid_BT.unsqueeze(-1), events_BTD, 1e3)
    before, after = (attention.ask(attention.see(e, valid_BT), query_BLD) for e in (events_BTD, changed_BTD))
    assert torch.equal(before, after)


def test_where_there_are_no_events_at_all_every_query_finds_the_null_event() -> None:
    attention = made()
    seen = attention.see(drawn(3, 0, WIDTH), torch.zeros(3, 0, dtype=torch.bool))
    expected_D = attention.value(attention.null_D)
    torch.testing.assert_close(attention.ask(seen, drawn(1, 2, WIDTH)), expected_D.expand(3, 2, WIDTH))


def test_at_first_an_event_is_found_by_what_is_like_it() -> None:
    torch.manual_seed(0)
    attention = Attention(width=32, heads=2).double()
    events_BTD, valid_BT = 0.05 * drawn(1, 10, 32), torch.ones(1, 10, dtype=torch.bool)
    seen = attention.see(events_BTD, valid_BT)
    found_BTD = attention.ask(seen, events_BTD)
    nearest_T = torch.cdist(found_BTD[0], attention.value(events_BTD)[0]).argmin(-1)
    assert torch.equal(nearest_T, torch.arange(10))
