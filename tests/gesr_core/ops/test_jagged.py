"""Jagged rows to padded tensors, against lists."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, strategies as st

from gesr_core.ops.jagged import pad_rows

ROWS = st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=6)


def jagged(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat values and offsets of lists."""
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return torch.tensor([value for row in rows for value in row], dtype=torch.int64), offsets


@given(rows=ROWS, length=st.integers(0, 8), keep=st.sampled_from(["first", "last"]), data=st.data())
def test_padded_rows_are_the_lists_cut_and_filled(
    rows: list[list[int]], length: int, keep: Literal["first", "last"], data: st.DataObject
) -> None:
    selected = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5))
    values_V, offsets = jagged(rows)
    padded = pad_rows(
        values_V, offsets, rows=torch.tensor(selected, dtype=torch.int64), length=length, fill=-1, keep=keep
    )
    for row, found in zip((rows[i] for i in selected), padded.tolist(), strict=True):
        kept = row[max(0, len(row) - length) :] if keep == "last" else row[:length]
        assert found == kept + [-1] * (length - len(kept))


@pytest.mark.parametrize("length", [0, 3])
def test_no_values_at_all_give_padding(length: int) -> None:
    padded = pad_rows(
        torch.zeros(0), torch.zeros(3, dtype=torch.int64), rows=torch.tensor([0, 1]), length=length, fill=7
    )
    assert padded.tolist() == [[7.0] * length] * 2
