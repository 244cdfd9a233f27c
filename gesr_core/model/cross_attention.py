"""Cross attention, both ways: a candidate looks at the history, and the user looks at the candidate's features.

That it is symmetric and costs time linear in the history is the paper's (gesr.md 1.6); which side asks, softmax, heads,
tokens and the null event are ours. Nothing of a pair is computed twice: the history's keys and values and the user's
queries come once per request (`prefill`), the candidate's query, keys and values once per item (`of_items`).

Legend: R items, B requests, T history positions, N candidates, D model width, C token width, H heads, K = C / H,
F feature tokens of an item, U tokens of a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gesr_core.model.embeddings import EMBEDDING_STD
from gesr_core.model.inputs import History

# Names of what `of_items` gives.
QUERY, KEYS, VALUES = "cross_query_RHK", "cross_keys_RHFK", "cross_values_RHFK"
# A softmax over one token is 1, whatever the query says.
MIN_TOKENS: Final = 2


@dataclass(frozen=True)
class CrossCache:
    """What the candidates of B requests need: the history with the null event first, and the user's queries."""

    keys_BHTK: Tensor
    values_BHTK: Tensor
    seen_BT: Tensor
    query_BHUK: Tensor


class FeatureTokens(nn.Module):
    """One token per declared feature, and constant ones up to `MIN_TOKENS`."""

    def __init__(self, *, widths: Sequence[int], numerics: int, width: int) -> None:
        """`widths` are those of the features that come embedded; those of width 0 do not come."""
        super().__init__()
        self.embedded = nn.ModuleList(nn.Linear(width_in, width) for width_in in widths if width_in)
        constants = max(0, MIN_TOKENS - len(self.embedded) - numerics)
        self.slope_FC = nn.Parameter(EMBEDDING_STD * torch.randn(numerics, width))
        self.start_FC = nn.Parameter(EMBEDDING_STD * torch.randn(numerics + constants, width))
        self.numerics, self.count = numerics, len(self.embedded) + numerics + constants

    def forward(self, embedded: Sequence[Tensor], numeric_RF: Tensor) -> Tensor:
        """Return tokens [R, count, C] of the embedded features [R, width] and of the numeric ones [R, F]."""
        tokens = [layer(part).unsqueeze(-2) for layer, part in zip(self.embedded, embedded, strict=True)]
        numbers_RFC = numeric_RF.unsqueeze(-1) * self.slope_FC + self.start_FC[: self.numerics]
        constants_RXC = self.start_FC[self.numerics :].expand(*numeric_RF.shape[:-1], -1, -1)
        return torch.cat([*tokens, numbers_RFC, constants_RXC], dim=-2)


class CrossAttention(nn.Module):
    """Both directions, and one linear over what they found."""

    def __init__(
        self,
        *,
        width: int,
        token_width: int,
        heads: int,
        item_widths: Sequence[int],
        item_numerics: int,
        user_widths: Sequence[int],
        user_numerics: int,
    ) -> None:
        """`user_widths` begins with the width of the user vector, which is a token of its own."""
        super().__init__()
        self.heads = heads
        self.item_tokens = FeatureTokens(widths=item_widths, numerics=item_numerics, width=token_width)
        self.user_tokens = FeatureTokens(widths=user_widths, numerics=user_numerics, width=token_width)
        self.item_query = nn.Linear(width, token_width)
        self.history_keys_values = nn.Linear(width, 2 * token_width)
        self.user_query = nn.Linear(token_width, token_width)
        self.item_keys_values = nn.Linear(token_width, 2 * token_width)
        # Always there to be looked at: an empty history has an answer, and a candidate that nothing resembles too.
        self.null_C = nn.Parameter(EMBEDDING_STD * torch.randn(2 * token_width))
        self.output = nn.Linear((1 + self.user_tokens.count) * token_width, width)

    def of_items(self, token_RD: Tensor, embedded: Sequence[Tensor], numeric_RF: Tensor) -> dict[str, Tensor]:
        """Return what is kept of R items: `QUERY`, `KEYS` and `VALUES`."""
        keys_RFC, values_RFC = self.item_keys_values(self.item_tokens(embedded, numeric_RF)).chunk(2, dim=-1)
        query_RHK = self.item_query(token_RD).unflatten(-1, (self.heads, -1))
        return {QUERY: query_RHK, KEYS: self._split(keys_RFC), VALUES: self._split(values_RFC)}

    def prefill(
        self, history: History, event_BTD: Tensor, user_embedded: Sequence[Tensor], user_numeric_BF: Tensor
    ) -> CrossCache:
        """Return the keys and values of the histories and the users' queries, once per request."""
        seen_BTC = self.history_keys_values(event_BTD)
        with_null_BTC = torch.cat([self.null_C.expand(len(seen_BTC), 1, -1), seen_BTC], dim=1)
        keys_BTC, values_BTC = with_null_BTC.chunk(2, dim=-1)
        query_BUC = self.user_query(self.user_tokens(user_embedded, user_numeric_BF))
        seen_BT = F.pad(history.valid_BT, (1, 0), value=True)
        return CrossCache(self._split(keys_BTC), self._split(values_BTC), seen_BT, self._split(query_BUC))

    def extend(self, cache: CrossCache, query_BNHK: Tensor, keys_BNHFK: Tensor, values_BNHFK: Tensor) -> Tensor:
        """Return crossed_BND of candidates, gathered from `of_items`, against the caches."""
        found_BHNK = F.scaled_dot_product_attention(
            query_BNHK.transpose(1, 2), cache.keys_BHTK, cache.values_BHTK, attn_mask=cache.seen_BT[:, None, None, :]
        )
        weights_BNHUF = self.user_weights(cache, keys_BNHFK)
        noticed_BNHUK = weights_BNHUF @ values_BNHFK
        # [B, N, H, U, K] to U tokens of width C
        noticed_BNC = noticed_BNHUK.transpose(2, 3).flatten(-3)
        return self.output(torch.cat([found_BHNK.transpose(1, 2).flatten(-2), noticed_BNC], dim=-1))

    def user_weights(self, cache: CrossCache, keys_BNHFK: Tensor) -> Tensor:
        """Return weights_BNHUF: how much each of the user's tokens looks at each of the candidate's."""
        scale = keys_BNHFK.shape[-1] ** -0.5
        return (scale * cache.query_BHUK.unsqueeze(1) @ keys_BNHFK.transpose(-1, -2)).softmax(-1)

    def _split(self, row_BLC: Tensor) -> Tensor:
        return row_BLC.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
