"""The shared table of counts."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from gesr_core.model.hard_matching import HardMatching


def test_every_pair_and_count_has_a_row_of_its_own() -> None:
    module = HardMatching(pairs=3, cap=4, count_width=2, width=2)
    rows = {int(count + offset) for offset in module.offset_P for count in range(5)}
    assert rows == set(range(15))
    assert module.table.num_embeddings == 15


def test_the_count_of_each_pair_reaches_the_output() -> None:
    torch.manual_seed(0)
    module = HardMatching(pairs=2, cap=4, count_width=2, width=3)
    outputs = module(torch.tensor([[[0, 0], [1, 0], [0, 1], [4, 4]]]))[0]
    assert len({tuple(row) for row in outputs.tolist()}) == 4


@pytest.mark.parametrize("offset", ["padded", "literal"])
def test_rows_start_in_the_order_of_their_counts(offset: Literal["padded", "literal"]) -> None:
    torch.manual_seed(0)
    module = HardMatching(pairs=2, cap=15, count_width=16, width=2, offset=offset)
    of_last_CK = module.table(torch.arange(16) + module.offset_P[1])
    from_zero_C = (of_last_CK - of_last_CK[0]).norm(dim=-1)
    assert from_zero_C[[1, 3, 7, 15]].tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0], rel=0.3)


def test_the_published_offset_lets_neighbouring_pairs_share_a_row() -> None:
    module = HardMatching(pairs=3, cap=4, count_width=2, width=2, offset="literal")
    assert module.offset_P.tolist() == [0, 4, 8]
    assert module.table.num_embeddings == 13
    highest = module.table(torch.tensor([4]) + module.offset_P[0])
    assert torch.equal(highest, module.table(torch.tensor([0]) + module.offset_P[1]))
    assert module(torch.full((1, 1, 3), 4)).isfinite().all()
