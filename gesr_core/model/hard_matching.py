"""Hard matching attention: capped counts of equal field values, embedded and mixed (gesr.md 1.4).

Legend: B requests, N candidates, P field pairs, K width of one embedded count, R rows of the table.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn

from gesr_core.model.embeddings import embedding

# How far a count of 1 starts from a count of 0.
_FIRST_STEP: Final = 0.25


class HardMatching(nn.Module):
    """T_match = MLP(concat of E(c_p + o_p)) over the pairs p: the paper's formula.

    Two strides of the shared table. `literal` is the published one, cap: the highest count of one pair then shares its
    row with a count of 0 of the next. `padded` is ours: cap + 1, because a count takes the values 0..cap.

    A pair's rows start in a line, as far along it as log2(1 + count) says, beside small noise (ours): so high counts,
    which are seldom seen, begin as more of what low ones are, and not as something else.
    """

    offset_P: Tensor

    def __init__(
        self,
        *,
        pairs: int,
        cap: int,
        count_width: int,
        width: int,
        offset: Literal["padded", "literal"] = "padded",
    ) -> None:
        super().__init__()
        stride, rows = (cap + 1, pairs * (cap + 1)) if offset == "padded" else (cap, pairs * cap + 1)
        self.table = embedding(rows, count_width)
        pair_R = (torch.arange(rows) // stride).clamp_max(pairs - 1)
        along_R = torch.log2(1.0 + torch.arange(rows) - stride * pair_R)
        direction_PK = _FIRST_STEP * torch.randn(pairs, count_width)
        self.table.weight.data += along_R.unsqueeze(-1) * direction_PK[pair_R]
        self.mix = nn.Sequential(nn.Linear(pairs * count_width, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("offset_P", torch.arange(pairs) * stride, persistent=False)

    def forward(self, counts_BNP: Tensor) -> Tensor:
        """Return matched [B, N, width] of counts 0..cap."""
        return self.mix(self.table(counts_BNP + self.offset_P).flatten(-2))
