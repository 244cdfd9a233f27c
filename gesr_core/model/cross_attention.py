"""Cross attention, both ways: a candidate looks at the history, and the user looks at the candidate's features.

That it is symmetric and costs time linear in the history is the paper's (gesr.md 1.6); which side asks, softmax, heads,
tokens and the null event are ours. Nothing of a pair is computed twice: the history's keys and values and the user's
queries come once per request (`prefill`), the query and the keys and values of what is embedded once per item
(`of_items`).

The token of a numeric feature is a line in its value x, and so are its key and its value: key(x) = x * slope + start.
So what a user's query makes of it is a line too, of two numbers per request, and nothing but x is kept of an item.

Legend: R items, B requests, T history positions, N candidates, D model width, C token width, H heads, K = C / H,
E embedded features of an item, F numeric ones, S starts (numeric features, then constants), A = E + S tokens of an
item, U tokens of a user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gesr_core.model.embeddings import EMBEDDING_STD
from gesr_core.model.inputs import History

# Names of what `of_items` gives; without embedded features there are no keys and values.
QUERY, KEYS, VALUES, NUMBERS = "cross_query_RHK", "cross_keys_RHEK", "cross_values_RHEK", "cross_numeric_RF"
# A softmax over one token is 1, whatever the query says.
MIN_TOKENS: Final = 2


@dataclass(frozen=True)
class CrossCache:
    """What the candidates of B requests need: the history with the null event first, and the users' scaled queries.

    `slope_BHFU` and `start_BHSU` are what the queries make of numeric and constant tokens.
    """

    keys_BHTK: Tensor
    values_BHTK: Tensor
    seen_BT: Tensor
    query_BHUK: Tensor
    slope_BHFU: Tensor
    start_BHSU: Tensor


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
        tokens = [token_RC.unsqueeze(-2) for token_RC in self.of_embedded(embedded)]
        numbers_RFC = numeric_RF.unsqueeze(-1) * self.slope_FC + self.start_FC[: self.numerics]
        constants_RXC = self.start_FC[self.numerics :].expand(*numeric_RF.shape[:-1], -1, -1)
        return torch.cat([*tokens, numbers_RFC, constants_RXC], dim=-2)

    def of_embedded(self, embedded: Sequence[Tensor]) -> list[Tensor]:
        """Return the tokens [R, C] of the embedded features alone."""
        return [layer(part) for layer, part in zip(self.embedded, embedded, strict=True)]


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
        """Return what is kept of R items: `QUERY`, `NUMBERS`, and `KEYS` and `VALUES` of the embedded features."""
        kept = {QUERY: self.item_query(token_RD).unflatten(-1, (self.heads, -1)), NUMBERS: numeric_RF}
        if tokens := self.item_tokens.of_embedded(embedded):
            keys_REC, values_REC = self.item_keys_values(torch.stack(tokens, dim=-2)).chunk(2, dim=-1)
            kept |= {KEYS: self._split(keys_REC), VALUES: self._split(values_REC)}
        return kept

    def prefill(
        self, history: History, event_BTD: Tensor, user_embedded: Sequence[Tensor], user_numeric_BF: Tensor
    ) -> CrossCache:
        """Return the keys and values of the histories and the users' queries, once per request."""
        seen_BTC = self.history_keys_values(event_BTD)
        with_null_BTC = torch.cat([self.null_C.expand(len(seen_BTC), 1, -1), seen_BTC], dim=1)
        keys_BTC, values_BTC = with_null_BTC.chunk(2, dim=-1)
        query_BUC = self.user_query(self.user_tokens(user_embedded, user_numeric_BF))
        query_BHUK = self._split(query_BUC) * (query_BUC.shape[-1] // self.heads) ** -0.5
        slope_HFK, start_HSK = self._lines(keys=True)
        return CrossCache(
            self._split(keys_BTC),
            self._split(values_BTC),
            F.pad(history.valid_BT, (1, 0), value=True),
            query_BHUK,
            slope_BHFU=slope_HFK @ query_BHUK.transpose(-1, -2),
            start_BHSU=start_HSK @ query_BHUK.transpose(-1, -2),
        )

    def extend(self, cache: CrossCache, kept: Mapping[str, Tensor]) -> Tensor:
        """Return crossed_BND of candidates against the caches; `kept` is gathered from `of_items`, [B, N, ...]."""
        found_BHNK = F.scaled_dot_product_attention(
            kept[QUERY].transpose(1, 2), cache.keys_BHTK, cache.values_BHTK, attn_mask=cache.seen_BT[:, None, None, :]
        )
        width = found_BHNK.shape[1] * found_BHNK.shape[3]
        found_BND = F.linear(found_BHNK.transpose(1, 2).flatten(-2), self.output.weight[:, :width], self.output.bias)
        # From columns [U, H, K] to the order in which they were noticed.
        weight_DHKU = self.output.weight[:, width:].unflatten(1, (-1, self.heads, width // self.heads)).movedim(1, -1)
        return found_BND + self._noticed(cache, kept).transpose(1, 2) @ weight_DHKU.flatten(1).t()

    def user_weights(self, cache: CrossCache, kept: Mapping[str, Tensor]) -> Tensor:
        """Return weights_BHAUN: how much each of the user's tokens looks at each of the candidate's.

        Candidates come last, where they stand side by side in memory: tokens are too few to be computed in a row.
        """
        number_BFN = kept[NUMBERS].transpose(1, 2).contiguous()
        batch, numbers, candidates = number_BFN.shape
        start_BHSU1 = cache.start_BHSU.unsqueeze(-1)
        shape = (batch, self.heads, -1, cache.query_BHUK.shape[2], candidates)
        scores = [
            torch.addcmul(start_BHSU1[:, :, :numbers], number_BFN[:, None, :, None], cache.slope_BHFU.unsqueeze(-1)),
            start_BHSU1[:, :, numbers:].expand(shape),
        ]
        if KEYS in kept:
            keys_BNHEK = kept[KEYS]
            # One product per head and token takes the keys as they lie.
            of_embedded = [
                cache.query_BHUK[:, head] @ keys_BNHEK[:, :, head, token].transpose(1, 2)
                for head in range(self.heads)
                for token in range(keys_BNHEK.shape[3])
            ]
            scores = [torch.stack(of_embedded, dim=1).unflatten(1, (self.heads, -1)), *scores]
        return torch.cat(scores, dim=2).softmax(2)

    def _noticed(self, cache: CrossCache, kept: Mapping[str, Tensor]) -> Tensor:
        """Return noticed [B, H * K * U, N]: the mean of the candidate's values, as each of the user's tokens weighs."""
        weights_BHAUN = self.user_weights(cache, kept)
        slope_HFK, start_HSK = self._lines(keys=False)
        numbers = slope_HFK.shape[1]
        embedded = weights_BHAUN.shape[2] - start_HSK.shape[1]
        of_lines_BHSUN = weights_BHAUN[:, :, embedded:]
        of_numbers_BHFUN = of_lines_BHSUN[:, :, :numbers] * kept[NUMBERS].transpose(1, 2)[:, None, :, None]
        line_HKX = torch.cat([start_HSK, slope_HFK], dim=1).transpose(1, 2)
        weights_BHXUN = torch.cat([of_lines_BHSUN, of_numbers_BHFUN], dim=2)
        noticed_BHKUN = (line_HKX @ weights_BHXUN.flatten(-2)).unflatten(-1, weights_BHXUN.shape[-2:])
        if embedded:
            value_BHEKN = kept[VALUES].movedim(1, -1).contiguous()
            for token in range(embedded):
                noticed_BHKUN = torch.addcmul(
                    noticed_BHKUN, value_BHEKN[:, :, token].unsqueeze(3), weights_BHAUN[:, :, token].unsqueeze(2)
                )
        return noticed_BHKUN.flatten(1, 3)

    def _lines(self, *, keys: bool) -> tuple[Tensor, Tensor]:
        """Return the slopes [H, F, K] and starts [H, S, K] of keys, or of values, of numeric and constant tokens."""
        weight_CC = self.item_keys_values.weight.chunk(2)[0 if keys else 1]
        bias_C = self.item_keys_values.bias.chunk(2)[0 if keys else 1]
        slope_FC = F.linear(self.item_tokens.slope_FC, weight_CC)
        start_SC = F.linear(self.item_tokens.start_FC, weight_CC, bias_C)
        return self._split(slope_FC), self._split(start_SC)

    def _split(self, row_BLC: Tensor) -> Tensor:
        return row_BLC.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
