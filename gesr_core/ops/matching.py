"""Hard match counts: how many events of a history share a field's value with a candidate. No parameters.

The definition c = min(sum of equalities, cap) is the paper's (gesr.md 1.4); masks and the sorted form are ours, and so
are lists of values (every pair of equal elements counts) and the narrowing of a pair to recent events or to some
actions (the paper's temporal truncation, gesr.md 1.3, pair by pair).

Match ids stand flat: a field with lists of at most W values has W columns, 0 where the list is shorter.

Legend: B requests, T history positions, N candidates, M columns of all match fields, P field pairs, G pairs of one
shape, W columns of a field, L = T * W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gesr_core.ops.dispatch import use_kernels


class MatchPair(NamedTuple):
    """A history field and a candidate field, as numbers of match fields; what narrows the events that are counted.

    `max_age_s`: only events of at most that age. `actions`: only events with one of these action indices; empty: any.
    """

    history: int
    candidate: int
    max_age_s: int | None = None
    actions: tuple[int, ...] = ()


@dataclass(frozen=True)
class MatchPlan:
    """The pairs, and the number of columns of each match field."""

    pairs: tuple[MatchPair, ...]
    columns: tuple[int, ...]

    @staticmethod
    def of(pairs: Sequence[MatchPair | tuple[int, int]], columns: Sequence[int] = ()) -> MatchPlan:
        """Return a plan; without `columns` every field has one."""
        declared = tuple(MatchPair(*pair) for pair in pairs)
        fields = max((max(pair.history, pair.candidate) for pair in declared), default=-1) + 1
        return MatchPlan(declared, tuple(columns) or (1,) * fields)

    def places(self, field: int) -> list[int]:
        """Return the columns of a field."""
        start = sum(self.columns[:field])
        return list(range(start, start + self.columns[field]))

    def groups(self) -> list[list[int]]:
        """Return the numbers of the pairs, together where both their sides have as many columns: counted at once."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for number, pair in enumerate(self.pairs):
            shapes.setdefault((self.columns[pair.history], self.columns[pair.candidate]), []).append(number)
        return list(shapes.values())


def match_counts_plain(
    history_BTM: Tensor,
    candidate_BNM: Tensor,
    *,
    plan: MatchPlan,
    age_s_BT: Tensor,
    action_BT: Tensor,
    cap: int,
) -> Tensor:
    """Return counts_BNP by comparing every event with every candidate: the reference, B x N x T x W x W a pair.

    0 is padding or a missing value on both sides, and never matches.
    """
    counts = [history_BTM.new_zeros(*candidate_BNM.shape[:2], 0, dtype=torch.int64)]
    for pair in plan.pairs:
        history_BTW = history_BTM[..., plan.places(pair.history)]
        candidate_BNW = candidate_BNM[..., plan.places(pair.candidate)]
        equal_BNTWW = history_BTW[:, None, :, :, None] == candidate_BNW[:, :, None, None, :]
        known_BNTWW = (candidate_BNW != 0)[:, :, None, None, :]
        counted_BNTWW = _counted(pair, age_s_BT, action_BT)[:, None, :, None, None]
        counts.append((equal_BNTWW & known_BNTWW & counted_BNTWW).sum((2, 3, 4)).clamp_max(cap).unsqueeze(-1))
    return torch.cat(counts, dim=-1)


def sort_matches(history_BTM: Tensor, *, plan: MatchPlan, age_s_BT: Tensor, action_BT: Tensor) -> tuple[Tensor, ...]:
    """Return each request's match ids, sorted, as [B, G, L] for each group of pairs: once a request."""
    found = []
    for group in plan.groups():
        pairs = [plan.pairs[number] for number in group]
        places = [place for pair in pairs for place in plan.places(pair.history)]
        ids_BTGW = history_BTM[..., places].unflatten(-1, (len(pairs), -1))
        if any(pair.max_age_s is not None or pair.actions for pair in pairs):
            counted_BTG = torch.stack([_counted(pair, age_s_BT, action_BT) for pair in pairs], dim=-1)
            ids_BTGW = ids_BTGW.masked_fill(~counted_BTG.unsqueeze(-1), 0)
        # Contiguous, or the searches copy them each time.
        found.append(ids_BTGW.permute(0, 2, 1, 3).flatten(2).contiguous().sort(dim=-1).values)
    return tuple(found)


def match_counts(sorted_ids: Sequence[Tensor], candidate_BNM: Tensor, *, plan: MatchPlan, cap: int) -> Tensor:
    """Return counts_BNP as `match_counts_plain` does, by two binary searches per element: nothing of size N x T.

    On a GPU, where no gradients are recorded, by a kernel that does all pairs of a shape at once.
    """
    if use_kernels(candidate_BNM):
        from gesr_core.ops import kernels

        fields = [plan.places(pair.candidate) for pair in plan.pairs]
        first, widths = [places[0] for places in fields], [len(places) for places in fields]
        return kernels.match_counts(
            sorted_ids, candidate_BNM, groups=plan.groups(), places=first, widths=widths, cap=cap
        )
    batch, targets = candidate_BNM.shape[:2]
    groups, counts = plan.groups(), []
    for group, sorted_BGL in zip(groups, sorted_ids, strict=True):
        places = [place for number in group for place in plan.places(plan.pairs[number].candidate)]
        width = len(places) // len(group)
        candidate_BGNW = candidate_BNM[..., places].unflatten(-1, (len(group), width)).permute(0, 2, 1, 3)
        element_BGE = candidate_BGNW.reshape(batch, len(group), targets * width).contiguous()
        first_BGE = torch.searchsorted(sorted_BGL, element_BGE)
        past_BGE = torch.searchsorted(sorted_BGL, element_BGE, right=True)
        count_BGE = (past_BGE - first_BGE).masked_fill(element_BGE == 0, 0)
        count_BGN = count_BGE.view(batch, len(group), targets, width).sum(-1) if width > 1 else count_BGE
        counts.append(count_BGN.clamp_max(cap).transpose(1, 2))
    if len(groups) == 1:
        return counts[0]
    order = [number for group in groups for number in group]
    in_order = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat([candidate_BNM.new_zeros(batch, targets, 0, dtype=torch.int64), *counts], dim=-1)[..., in_order]


def _counted(pair: MatchPair, age_s_BT: Tensor, action_BT: Tensor) -> Tensor:
    """True at the events that a pair counts; what stands at padding does not matter, its ids are 0."""
    counted_BT = torch.ones_like(action_BT, dtype=torch.bool)
    if pair.max_age_s is not None:
        counted_BT = age_s_BT <= pair.max_age_s
    if pair.actions:
        counted_BT = counted_BT & torch.isin(action_BT, torch.tensor(pair.actions, device=action_BT.device))
    return counted_BT
