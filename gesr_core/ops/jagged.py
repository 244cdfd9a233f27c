"""Jagged rows (values and offsets) to padded tensors. Vectorised; no parameters; runs anywhere torch does.

Legend: V values, R jagged rows, B selected rows, L padded length.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def lengths(offsets: Tensor) -> Tensor:
    """Return the lengths [R] of the rows that `offsets` [R + 1] delimit."""
    return offsets[1:] - offsets[:-1]


def pad_rows(
    values_V: Tensor,
    offsets: Tensor,
    *,
    rows: Tensor,
    length: int,
    fill: float | bool = 0,
    keep: Literal["first", "last"] = "first",
    skip: int = 0,
) -> Tensor:
    """Return the rows named by `rows` [B] as [B, L], each from position 0 on, `fill` after its end.

    A row that is longer than `length` keeps its first or its last values, in their order; of the first ones, `skip` are
    left out.
    """
    starts_B = offsets[rows] + skip
    kept_B = (offsets[rows + 1] - starts_B).clamp(0, length)
    if keep == "last":
        starts_B = offsets[rows + 1] - kept_B
    position_L = torch.arange(length, device=values_V.device)
    valid_BL = position_L < kept_B.unsqueeze(-1)
    if not values_V.numel():
        return values_V.new_full(valid_BL.shape, fill)
    index_BL = torch.where(valid_BL, starts_B.unsqueeze(-1) + position_L, 0)
    return values_V[index_BL].masked_fill(~valid_BL, fill)
