"""Embedding tables as every part of a model starts them."""

from __future__ import annotations

from torch import nn

# Small, as usual: a default of 1.0 makes an item that is seldom seen as loud as one that is well known.
EMBEDDING_STD = 0.05


def embedding(rows: int, width: int, *, std: float = EMBEDDING_STD) -> nn.Embedding:
    """Return a table with small random rows."""
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=std)
    return table
