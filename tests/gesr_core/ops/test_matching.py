"""Hard match counts: the fast form against brute force, and padding."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st

from gesr_core.ops.matching import match_counts, match_counts_plain, sort_matches


@st.composite
def match_inputs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ragged histories and candidates, padded with 0, with few distinct ids so that they match often; and a cap."""
    batch, events, targets, pairs = draw(st.tuples(*(st.integers(low, 5) for low in (1, 0, 0, 1))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    history_BTP = torch.randint(0, 4, (batch, events, pairs), generator=generator, dtype=torch.int32)
    candidate_BNP = torch.randint(0, 4, (batch, targets, pairs), generator=generator, dtype=torch.int32)
    length_B = torch.randint(0, events + 1, (batch,), generator=generator)
    history_BTP[torch.arange(events) >= length_B.unsqueeze(-1)] = 0
    return history_BTP, candidate_BNP, draw(st.integers(1, 4))


def brute_force(history_BTP: torch.Tensor, candidate_BNP: torch.Tensor, cap: int) -> list[list[list[int]]]:
    """Count by loops."""
    return [
        [
            [min(cap, sum(event[p] == candidate[p] != 0 for event in history)) for p in range(len(candidate))]
            for candidate in candidates
        ]
        for history, candidates in zip(history_BTP.tolist(), candidate_BNP.tolist(), strict=True)
    ]


@given(inputs=match_inputs())
def test_both_forms_count_as_brute_force_does(inputs: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    history_BTP, candidate_BNP, cap = inputs
    expected = brute_force(*inputs)
    assert match_counts_plain(history_BTP, candidate_BNP, cap=cap).tolist() == expected
    assert match_counts(sort_matches(history_BTP), candidate_BNP, cap=cap).tolist() == expected


def test_padding_and_missing_values_never_match() -> None:
    nothing = torch.zeros(1, 3, 1, dtype=torch.int64)
    assert match_counts_plain(nothing, nothing, cap=5).sum() == 0
    assert match_counts(sort_matches(nothing), nothing, cap=5).sum() == 0
