"""For each event of a history, the event before it with the same item. No parameters; runs anywhere torch does.

Legend: B requests, T history positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def previous_same(row_BT: Tensor) -> Tensor:
    """Return the place [B, T] of the nearest earlier event of the same row, -1 where there is none.

    Rows below 0 (padding, items that are not in the table) are like nothing, not even one another. By a stable sort:
    equal rows stand side by side then, in their order, and nothing of size T x T is made.
    """
    sorted_BT, order_BT = row_BT.sort(dim=1, stable=True)
    same = (sorted_BT[:, 1:] == sorted_BT[:, :-1]) & (sorted_BT[:, 1:] >= 0)
    before_BT = torch.full_like(order_BT, -1)
    before_BT[:, 1:] = torch.where(same, order_BT[:, :-1], -1)
    return torch.empty_like(order_BT).scatter(1, order_BT, before_BT)
