"""Hard match counts: both forms against brute force, on lists, windows and actions; and padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, strategies as st
from torch import Tensor

from gesr_core.ops.matching import MatchPair, MatchPlan, match_counts, match_counts_plain, sort_matches


@dataclass(frozen=True)
class Matches:
    """Ragged histories and candidates, padded with 0."""

    plan: MatchPlan
    history_BTM: Tensor
    candidate_BNM: Tensor
    age_s_BT: Tensor
    action_BT: Tensor
    cap: int

    def plain(self) -> Tensor:
        """Count by the reference."""
        return match_counts_plain(
            self.history_BTM,
            self.candidate_BNM,
            plan=self.plan,
            age_s_BT=self.age_s_BT,
            action_BT=self.action_BT,
            cap=self.cap,
        )

    def fast(self) -> Tensor:
        """Count by sorted ids."""
        ids = sort_matches(self.history_BTM, plan=self.plan, age_s_BT=self.age_s_BT, action_BT=self.action_BT)
        return match_counts(ids, self.candidate_BNM, plan=self.plan, cap=self.cap)

    def brute_force(self) -> list[list[list[int]]]:
        """Count by loops."""
        events = [
            list(zip(*request, strict=True))
            for request in zip(self.history_BTM.tolist(), self.age_s_BT.tolist(), self.action_BT.tolist(), strict=True)
        ]

        def counts(history: list[Any], candidate: list[int]) -> list[int]:
            return [min(self.cap, self._count(pair, history, candidate)) for pair in self.plan.pairs]

        return [
            [counts(history, candidate) for candidate in offered]
            for history, offered in zip(events, self.candidate_BNM.tolist(), strict=True)
        ]

    def _count(self, pair: MatchPair, history: list[tuple[list[int], float, int]], candidate: list[int]) -> int:
        count = 0
        for ids, age_s, action in history:
            if pair.max_age_s is not None and age_s > pair.max_age_s:
                continue
            if pair.actions and action not in pair.actions:
                continue
            for seen in self.plan.places(pair.history):
                count += sum(ids[seen] == candidate[offered] != 0 for offered in self.plan.places(pair.candidate))
        return count


@st.composite
def matches(draw: st.DrawFn) -> Matches:
    """Few distinct ids, so that they match often; among the histories empty ones and such of one event."""
    batch, events, targets = draw(st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(0, 4)))
    columns = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    field = st.integers(0, len(columns) - 1)
    actions = st.lists(st.integers(1, 2), max_size=2, unique=True).map(tuple)
    pair = st.builds(MatchPair, field, field, st.sampled_from([None, 0, 3, 6]), actions)
    plan = MatchPlan(tuple(draw(st.lists(pair, min_size=1, max_size=4))), columns)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    history_BTM = torch.randint(0, 4, (batch, events, sum(columns)), generator=g, dtype=torch.int32)
    candidate_BNM = torch.randint(0, 4, (batch, targets, sum(columns)), generator=g, dtype=torch.int32)
    length_B = torch.randint(0, events + 1, (batch,), generator=g)
    history_BTM[torch.arange(events) >= length_B.unsqueeze(-1)] = 0
    age_s_BT, action_BT = (torch.randint(0, high, (batch, events), generator=g) for high in (8, 3))
    return Matches(plan, history_BTM, candidate_BNM, age_s_BT.float(), action_BT, draw(st.integers(1, 4)))


@given(inputs=matches())
def test_both_forms_count_as_brute_force_does(inputs: Matches) -> None:
    expected = inputs.brute_force()
    assert inputs.plain().tolist() == expected
    assert inputs.fast().tolist() == expected


def test_padding_and_missing_values_never_match() -> None:
    nothing, zeros = torch.zeros(1, 3, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)
    plan = MatchPlan.of([(0, 0), (1, 1), (1, 0)], [1, 2])
    inputs = Matches(plan, nothing, nothing, zeros.float(), zeros, cap=9)
    assert inputs.plain().sum() == 0
    assert inputs.fast().sum() == 0


def test_lists_count_every_pair_of_equal_elements() -> None:
    # Two events with the topics {1, 2} and {2, 3}, a candidate with {2, 3}.
    history, candidate = torch.tensor([[[1, 2, 0], [2, 3, 0]]]), torch.tensor([[[2, 3, 0]]])
    zeros = torch.zeros(1, 2, dtype=torch.int64)
    inputs = Matches(MatchPlan.of([(0, 0)], [3]), history, candidate, zeros.float(), zeros, cap=9)
    assert inputs.fast().tolist() == inputs.plain().tolist() == [[[3]]]


def test_pairs_of_one_shape_are_counted_together_and_come_in_their_own_order() -> None:
    plan = MatchPlan.of([(0, 0), (1, 1), MatchPair(0, 0, max_age_s=5), (0, 1)], [1, 2])
    assert plan.groups() == [[0, 2], [1], [3]]
    history = torch.tensor([[[1, 2, 3], [1, 3, 0], [4, 2, 4]]])
    age_s_BT, action_BT = torch.tensor([[9.0, 4.0, 1.0]]), torch.ones(1, 3, dtype=torch.int64)
    inputs = Matches(plan, history, torch.tensor([[[1, 2, 3], [9, 4, 0]]]), age_s_BT, action_BT, cap=9)
    assert inputs.fast().tolist() == inputs.plain().tolist() == [[[2, 4, 1, 0], [0, 1, 0, 1]]]
