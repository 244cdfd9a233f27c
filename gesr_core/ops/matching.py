"""Hard match counts: how many events of a history share a field's value with a candidate. No parameters.

The definition c = min(sum of equalities, cap) is the paper's (gesr.md 1.4); masks and the sorted form are ours.

Legend: B requests, T history positions, N candidates, P field pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def match_counts_plain(history_BTP: Tensor, candidate_BNP: Tensor, *, cap: int) -> Tensor:
    """Return counts_BNP by comparing every event with every candidate: the reference, of size B x N x T x P.

    0 is padding or a missing value on both sides, and never matches.
    """
    equal_BNTP = history_BTP.unsqueeze(1) == candidate_BNP.unsqueeze(2)
    known_BNTP = (candidate_BNP != 0).unsqueeze(2)
    return (equal_BNTP & known_BNTP).sum(2).clamp_max(cap)


def sort_matches(history_BTP: Tensor) -> Tensor:
    """Return each request's match ids sorted_BPT, once per request, for `match_counts`."""
    return history_BTP.transpose(1, 2).contiguous().sort(dim=-1).values


def match_counts(sorted_BPT: Tensor, candidate_BNP: Tensor, *, cap: int) -> Tensor:
    """Return counts_BNP as `match_counts_plain` does, by two binary searches per candidate: nothing of size N x T."""
    candidate_BPN = candidate_BNP.transpose(1, 2).contiguous()
    first_BPN = torch.searchsorted(sorted_BPT, candidate_BPN)
    past_BPN = torch.searchsorted(sorted_BPT, candidate_BPN, right=True)
    counts_BPN = (past_BPN - first_BPN).clamp_max(cap).masked_fill(candidate_BPN == 0, 0)
    return counts_BPN.transpose(1, 2)
