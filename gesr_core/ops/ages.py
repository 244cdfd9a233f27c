"""Ages in seconds to log-spaced buckets. No parameters; runs anywhere torch does.

Integer edges, because a float logarithm may fall on either side of an edge in a vectorised and in a scalar loop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The finest and the coarsest age that are told apart: a minute, and four hundred days (so that a year is inside).
MIN_AGE_S = 60
MAX_AGE_S = 400 * 86_400
# From so many ages on a table of cells of floats pays; it takes a third of the time of binary searches.
_MANY = 1 << 16
# 16 cells from one power of two to the next: none holds two edges that are 7 % apart. The last is that of infinity.
_CELL_BITS = 19
_CELLS = (0x7F800000 >> _CELL_BITS) + 1


def log_edges_s(buckets: int) -> list[int]:
    """Return the `buckets` - 1 edges, in whole seconds, that cut ages into log-spaced buckets.

    Raises:
        ValueError: `buckets` is below 3.
    """
    if buckets < 3:
        raise ValueError(f"{buckets} age buckets: at least 3 are needed")
    step = math.log(MAX_AGE_S / MIN_AGE_S) / (buckets - 2)
    return [round(MIN_AGE_S * math.exp(step * i)) for i in range(buckets - 1)]


def bucket_ages(age_s: Tensor, edges_s: Tensor) -> Tensor:
    """Return each age's bucket, 0 (below the first edge, also when negative) to len(edges)."""
    edges_s = edges_s.to(age_s.dtype)
    if age_s.dtype == torch.float32 and age_s.device.type == "cpu" and age_s.numel() >= _MANY:
        lower_C, next_edge_C = _cells(edges_s)
        # Cells with two edges would need a second look.
        if int(lower_C.diff().amax()) <= 1:
            cell = _cell(age_s).flatten()
            past_edge = age_s.flatten() >= next_edge_C.index_select(0, cell)
            return (lower_C.index_select(0, cell) + past_edge).view_as(age_s)
    return torch.bucketize(age_s, edges_s, right=True)


def _cells(edges_s: Tensor) -> tuple[Tensor, Tensor]:
    """Return each cell's bucket at its start, and the next edge (NaN, which nothing passes, after the last)."""
    start_C = (torch.arange(_CELLS, dtype=torch.int32) << _CELL_BITS).view(torch.float32)
    lower_C = torch.bucketize(start_C, edges_s, right=True)
    return lower_C, torch.cat([edges_s, edges_s.new_full((1,), torch.nan)])[lower_C]


def _cell(age_s: Tensor) -> Tensor:
    """Return the cell of each age: its exponent and the first bits of its mantissa; that of 0 where it is negative."""
    return (age_s.contiguous().view(torch.int32) >> _CELL_BITS).clamp_min_(0)
