"""How windows are cut into micro-batches, and micro-batches into pieces."""

from __future__ import annotations

import torch
from hypothesis import given, settings, strategies as st

from gesr_core.runtime.plan import MicroBatch, ScorerSettings, plan_micro_batches, power_of_two_requests

SETTINGS = ScorerSettings(
    request_time_s=0,
    tasks=("a",),
    score_weights=(1.0,),
    top_k=3,
    batch_pairs=10_000,
    plan_window_requests=100,
    history_buckets=(4, 8),
    candidate_buckets=(2, 4, 16),
    batch_bytes=1_000,
)


@given(requests=st.integers(1, 9), candidates=st.integers(1, 20), first=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_pieces_hold_every_pair_once_and_halve_down_to_one_pair(requests: int, candidates: int, first: int) -> None:
    whole = MicroBatch(torch.arange(requests) + 5, 8, candidates, first)
    pairs = {(5 + request, first + place) for request in range(requests) for place in range(candidates)}
    sizes = []
    for halvings in range(whole.most_halvings + 1):
        pieces = whole.pieces(halvings)
        found = [(r, p.first + n) for p in pieces for r in p.select.tolist() for n in range(p.candidates)]
        assert len(found) == len(pairs)
        assert set(found) == pairs
        sizes.append(max(len(p.select) * p.candidates for p in pieces))
        if halvings:
            # A half of what it was, rounded up in requests or in candidates.
            assert sizes[-1] <= sizes[-2] / 2 + max(1, candidates) / 2
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)


def test_requests_are_cut_before_candidates() -> None:
    pieces = MicroBatch(torch.arange(3), 8, 10).pieces(2)
    assert [(p.select.tolist(), p.candidates, p.first) for p in pieces] == [([0], 10, 0), ([1], 10, 0), ([2], 10, 0)]
    pieces = MicroBatch(torch.arange(1), 8, 5).pieces(1)
    assert [(p.select.tolist(), p.candidates, p.first) for p in pieces] == [([0], 3, 0), ([0], 2, 3)]


def test_micro_batches_stay_within_the_bytes_that_are_counted() -> None:
    lengths, counts = torch.tensor([4, 4, 4, 8, 4]), torch.tensor([4, 4, 4, 4, 16])
    plan = plan_micro_batches(lengths, counts, settings=SETTINGS, bytes_of=lambda history, n: 100 * n + history)
    # 404 bytes a request of the first shape: two at once. One request always goes, whatever it takes.
    assert [(m.select.tolist(), m.history_length, m.candidates) for m in plan] == [
        ([0, 1], 4, 4), ([2], 4, 4), ([4], 4, 16), ([3], 8, 4),
    ]  # fmt: skip


@given(most=st.integers(1, 9), requests=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_graphs_see_few_numbers_of_requests(most: int, requests: int) -> None:
    replayed = ScorerSettings(**{**vars(SETTINGS), "batch_pairs": most * 4, "batch_bytes": None, "compiled": "graphs"})
    plan = plan_micro_batches(torch.full((requests,), 4), torch.full((requests,), 4), settings=replayed)
    assert torch.cat([m.select for m in plan]).tolist() == list(range(requests))
    for micro_batch in plan:
        padded = power_of_two_requests(micro_batch.select)
        assert len(padded) in (1, 2, 4, 8)
        assert len(padded) <= most
        assert len(padded) < 2 * len(micro_batch.select)
        assert padded[: len(micro_batch.select)].tolist() == micro_batch.select.tolist()
    assert all(len(m.select) == len(power_of_two_requests(m.select)) for m in plan[:-1])


def test_bytes_are_not_counted_where_nothing_bounds_them() -> None:
    unbounded = ScorerSettings(**{**vars(SETTINGS), "batch_bytes": None})

    def refuse(history_length: int, candidates: int) -> int:
        raise AssertionError("counted")

    [micro_batch] = plan_micro_batches(torch.tensor([1]), torch.tensor([1]), settings=unbounded, bytes_of=refuse)
    assert micro_batch.select.tolist() == [0]
