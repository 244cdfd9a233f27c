"""Softmax attention as TARQ has it: separate linears for queries, keys and values, heads, and nothing after them.

The form (no output projection, scale 1 / sqrt(K), queries and keys normalised per head) is that of the authors' public
attention op (tarq.md 4). Ours: the null event that stands in every history, so that an empty one has an answer and a
single event need not take all the weight; keys that start as the queries do, so that at first an event is found by what
is like it; the residual around self attention, without which events of a history start out all alike.

Legend: B requests, T history positions, L queries, D model width, H heads, K = D / H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gesr_core.model.embeddings import EMBEDDING_STD


@dataclass(frozen=True)
class SeenHistory:
    """The keys and values of B histories, the null event first, and which of them are events: once per request."""

    keys_BHTK: Tensor
    values_BHTK: Tensor
    seen_BT: Tensor


class Attention(nn.Module):
    """Queries look at a history: `see` once per request, then `ask` as often as one likes."""

    def __init__(self, *, width: int, heads: int) -> None:
        """`width` must be a multiple of `heads`."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        # Rows start small beside a bias, which would make them all alike once they are normalised.
        nn.init.zeros_(self.query.bias)
        self.key.load_state_dict(self.query.state_dict())
        self.null_D = nn.Parameter(EMBEDDING_STD * torch.randn(width))

    def see(self, event_BTD: Tensor, valid_BT: Tensor) -> SeenHistory:
        """Return the keys and values of histories; what stands at padding has no influence."""
        with_null_BTD = torch.cat([self.null_D.expand(len(event_BTD), 1, -1), event_BTD], dim=1)
        keys_BHTK = self._normed(self.key(with_null_BTD))
        return SeenHistory(keys_BHTK, self._split(self.value(with_null_BTD)), F.pad(valid_BT, (1, 0), value=True))

    def ask(self, seen: SeenHistory, query_BLD: Tensor) -> Tensor:
        """Return attended_BLD; `query_BLD` may have a first dimension of 1: the same queries for every history."""
        query_BHLK = self._normed(self.query(query_BLD)).expand(len(seen.seen_BT), -1, -1, -1)
        attended_BHLK = F.scaled_dot_product_attention(
            query_BHLK, seen.keys_BHTK, seen.values_BHTK, attn_mask=seen.seen_BT[:, None, None, :]
        )
        return attended_BHLK.transpose(1, 2).flatten(-2)

    def forward(self, event_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Return a history's events after they looked at one another: X + MHA(X, X, X)."""
        return event_BTD + self.ask(self.see(event_BTD, valid_BT), event_BTD)

    def _normed(self, row_BLD: Tensor) -> Tensor:
        split_BHLK = self._split(row_BLD)
        return F.layer_norm(split_BHLK, split_BHLK.shape[-1:])

    def _split(self, row_BLD: Tensor) -> Tensor:
        return row_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
