"""The previous event with the same item, against a loop."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st

from gesr_core.ops.repeats import previous_same

_HISTORIES = st.integers(0, 9).flatmap(
    lambda events: st.lists(st.lists(st.integers(-1, 3), min_size=events, max_size=events), min_size=1, max_size=4)
)


@given(histories=_HISTORIES)
def test_every_event_finds_the_nearest_earlier_one_of_its_item(histories: list[list[int]]) -> None:
    expected = [
        [max((t for t in range(now) if rows[t] == rows[now] >= 0), default=-1) for now in range(len(rows))]
        for rows in histories
    ]
    assert previous_same(torch.tensor(histories, dtype=torch.int64)).tolist() == expected
