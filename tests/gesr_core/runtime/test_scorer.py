"""Properties of the scorer with a mock model whose score can be computed by hand: chance cannot pass these tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from torch import Tensor, nn

from gesr_core.model.inputs import History, ItemState, UserFeatures
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.runtime.plan import ScorerSettings, plan_micro_batches, window_ends, windows
from gesr_core.runtime.scorer import Scorer

SETTINGS = ScorerSettings(
    request_time_s=1_000,
    tasks=("a", "b"),
    score_weights=(1.0, 0.5),
    top_k=3,
    batch_pairs=8,
    plan_window_requests=2,
    history_buckets=(1, 2, 4),
    candidate_buckets=(2, 4),
)
ITEM_IDS = [10, 20, 30, 40, 50]


@dataclass(frozen=True)
class _State:
    total_B: Tensor


class _SumModel(nn.Module):
    """Logit a = item value x (1 + sum of the history's item values); logit b = minus the item value."""

    def encode_user(self, history: History, history_items: ItemState, user: UserFeatures) -> _State:
        return _State(1 + (history_items.vector_RD.squeeze(-1) * history.valid_BT).sum(1))

    def score(self, state: _State, items: ItemState) -> Tensor:
        value_BN = items.vector_RD.squeeze(-1)
        return torch.stack([value_BN * state.total_B.unsqueeze(-1), -value_BN], dim=-1)


def _scorer(values: Sequence[float] = (1, 2, 3, 2, 5), **changes: Any) -> Scorer:
    vector = torch.tensor(values, dtype=torch.float32).unsqueeze(-1)
    items = ItemState(vector, vector, torch.zeros(len(values), 0, dtype=torch.int64))
    return Scorer(
        _SumModel(),
        items=items,
        index=ItemIndex.build(torch.tensor(ITEM_IDS)),
        encode_users=lambda batch: UserFeatures(torch.zeros(batch.num_rows, 0), torch.zeros(batch.num_rows, 0)),
        actions=["buy"],
        settings=replace(SETTINGS, **changes),
        device=torch.device("cpu"),
    )


Row = tuple[int, int | None, list[int], list[int], list[tuple[int | None, str]]]


def _batch(rows: Sequence[Row], *, parts: Sequence[int] | None = None) -> pa.RecordBatch:
    """Rows are (shard, user, history items, candidates, rejected); all are in part 0 unless `parts` says otherwise."""
    seen: dict[tuple[int, int | None], int] = {}
    numbers = [seen.setdefault((r[0], r[1]), i) for i, r in enumerate(rows)]
    entry = pa.list_(pa.struct([("item_id", pa.int64()), ("reason", pa.string())]))
    return pa.RecordBatch.from_pydict(
        {
            "shard": pa.array([r[0] for r in rows], pa.int32()),
            "part": pa.array(parts or [0] * len(rows), pa.int32()),
            "user_id": pa.array([r[1] for r in rows], pa.int64()),
            "request": pa.array([i - first for i, first in enumerate(numbers)], pa.int32()),
            "history_item_id": pa.array([r[2] for r in rows], pa.list_(pa.int64())),
            "history_time_s": pa.array([[0] * len(r[2]) for r in rows], pa.list_(pa.int64())),
            "history_action": pa.array([["buy"] * len(r[2]) for r in rows], pa.list_(pa.string())),
            "history_value": pa.array([[1.0] * len(r[2]) for r in rows], pa.list_(pa.float64())),
            "candidate_item_id": pa.array([r[3] for r in rows], pa.list_(pa.int64())),
            "rejected": pa.array([[{"item_id": i, "reason": w} for i, w in r[4]] for r in rows], entry),
            "candidates_in": pa.array([len(r[3]) + len(r[4]) for r in rows], pa.int64()),
        }
    )


def _score(scorer: Scorer, batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    """The score rows without their stats, which time differently each time."""
    return [{k: v for k, v in row.items() if k != "stats"} for row in _score_with_stats(scorer, batches)]


def _score_with_stats(scorer: Scorer, batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    return [row for batch in scorer.score(iter(batches)) for row in batch.to_pylist()]


def test_best_candidates_come_first_with_their_logits() -> None:
    [row] = _score(_scorer(), [_batch([(0, 1, [10, 50], [10, 20, 30], [])])])
    # total = 1 + 1 + 5 = 7; score = 7 v - 0.5 v
    assert [(p["item_id"], p["rank"], p["score"]) for p in row["ranked"]] == [
        (30, 1, 19.5),
        (20, 2, 13.0),
        (10, 3, 6.5),
    ]
    assert [row["ranked"][0][name] for name in ("logit_a", "logit_b")] == [21, -3]
    assert row["candidates_in"] == row["candidates_scored"] == 3


def test_ties_go_to_the_smaller_item_id_also_at_the_cut() -> None:
    [row] = _score(_scorer(top_k=1), [_batch([(0, 1, [], [20, 40], [])])])
    assert [p["item_id"] for p in row["ranked"]] == [20]


def test_unknown_items_are_rejected_behind_those_that_were_rejected_before() -> None:
    rows: list[Row] = [
        (0, 1, [999], [15, 20], [(20, "duplicate_candidate")]),
        (0, None, [], [], [(30, "null_user_id")]),
    ]
    first, second = _score(_scorer(), [_batch(rows)])
    assert [(e["item_id"], e["reason"]) for e in first["rejected"]] == [
        (20, "duplicate_candidate"),
        (15, "unknown_item"),
    ]
    assert (first["candidates_in"], first["candidates_scored"]) == (3, 1)
    assert [second[name] for name in ("user_id", "ranked")] == [None, []]
    assert second["rejected"] == [{"item_id": 30, "reason": "null_user_id"}]


def test_requests_of_one_user_are_merged() -> None:
    parts: list[Row] = [(0, 1, [10], [10, 20], []), (0, 1, [10], [30, 40], []), (0, 1, [10], [50], [])]
    whole: list[Row] = [(0, 1, [10], [10, 20, 30, 40, 50], [])]
    merged, direct = _score(_scorer(), [_batch(parts)]), _score(_scorer(), [_batch(whole)])
    assert merged == direct
    assert [p["item_id"] for p in merged[0]["ranked"]] == [50, 30, 20]


def test_empty_input_gives_nothing() -> None:
    assert _score(_scorer(), []) == []
    assert _score(_scorer(), [_batch([])]) == []


_ROWS: st.SearchStrategy[list[Row]] = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 6),
        st.lists(st.sampled_from([10, 20, 30, 777]), max_size=6),
        st.lists(st.sampled_from([*ITEM_IDS, 15]), unique=True, max_size=6).map(sorted),
        st.just([]),
    ),
    max_size=14,
    unique_by=lambda row: row[:2],
).map(lambda rows: sorted(rows, key=lambda row: row[:2]))


@given(rows=_ROWS, cuts=st.lists(st.integers(1, 5), min_size=1, max_size=14))
@hypothesis_settings(max_examples=60, deadline=None)
def test_how_arrow_batched_the_rows_changes_no_bit(rows: list[Row], cuts: list[int]) -> None:
    whole = _batch(rows)
    pieces, start = [], 0
    for cut in cuts * len(rows):
        if start < len(rows):
            pieces.append(whole.slice(start, cut))
            start += cut
    assert _score(_scorer(), pieces) == _score(_scorer(), [whole])
    ends = [[w.num_rows for w in windows(iter(parts), requests=2)] for parts in ([whole], pieces)]
    assert ends[0] == ends[1]


@given(rows=_ROWS, batch_pairs=st.integers(1, 40), window=st.integers(1, 9))
@hypothesis_settings(max_examples=60, deadline=None)
def test_the_plan_changes_no_score_of_an_exact_model(rows: list[Row], batch_pairs: int, window: int) -> None:
    other = _scorer(batch_pairs=batch_pairs, plan_window_requests=window)
    assert _score(other, [_batch(rows)]) == _score(_scorer(), [_batch(rows)])


@given(rows=_ROWS)
@hypothesis_settings(max_examples=60, deadline=None)
def test_every_candidate_is_ranked_cut_or_rejected(rows: list[Row]) -> None:
    for source, row in zip(rows, _score(_scorer(top_k=100), [_batch(rows)]), strict=True):
        ranked, rejected = [p["item_id"] for p in row["ranked"]], [e["item_id"] for e in row["rejected"]]
        assert sorted(ranked + rejected) == source[3]
        assert [p["rank"] for p in row["ranked"]] == list(range(1, len(ranked) + 1))
        scores = [p["score"] for p in row["ranked"]]
        assert scores == sorted(scores, reverse=True)


def test_windows_hold_whole_users_of_one_shard() -> None:
    batch = _batch([(0, 1, [], [], []), (0, 1, [], [], []), (0, 1, [], [], []), (0, 2, [], [], []), (1, 2, [], [], [])])
    assert [w.num_rows for w in windows(iter([batch]), requests=2)] == [3, 1, 1]


def test_windows_hold_one_part_of_a_shard_and_are_numbered_in_it() -> None:
    rows: list[Row] = [(3, user, [], [10], []) for user in range(6)]
    batch = _batch(rows, parts=[0, 0, 0, 1, 1, 1])
    found = [row["stats"] for row in _score_with_stats(_scorer(), [batch]) if row["stats"]]
    assert [(s["part"], s["window"], s["requests"]) for s in found] == [(0, 0, 2), (0, 1, 1), (1, 0, 2), (1, 1, 1)]


@pytest.mark.parametrize("length", [0, 1])
def test_a_window_waits_for_more_when_no_boundary_was_seen(length: int) -> None:
    batch = _batch([(0, 1, [], [], [])] * length)
    assert window_ends(batch, requests=1) == []


def test_micro_batches_share_a_shape_and_stay_within_the_budget() -> None:
    lengths, counts = torch.tensor([0, 1, 2, 9, 2, 2]), torch.tensor([2, 1, 2, 4, 0, 9])
    plan = plan_micro_batches(lengths, counts, settings=SETTINGS)
    shapes = [(m.select.tolist(), m.history_length, m.candidates) for m in plan]
    # A request beyond the last candidate bucket has a shape of its own; one without candidates is in no micro-batch.
    assert shapes == [([0, 1], 1, 2), ([2], 2, 2), ([5], 2, 9), ([3], 4, 4)]


def test_colliding_string_keys_are_told_apart_by_value() -> None:
    index = ItemIndex.build(torch.tensor([5, 7, 7, 9]), pa.array(["a", "b", "c", "d"]))
    keys, values = torch.tensor([7, 7, 7, 9, 8]), pa.array(["c", "b", "x", "d", "d"])
    assert index.rows(keys, values).tolist() == [2, 1, -1, 3, -1]


def test_unsorted_or_repeated_item_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="not sorted"):
        ItemIndex.build(torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="not unique"):
        ItemIndex.build(torch.tensor([1, 1]))


def test_scores_of_a_repeated_run_are_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    rows: list[Row] = [
        (0, user, [10, 20], sorted(rng.choice(ITEM_IDS, 4, replace=False).tolist()), []) for user in range(9)
    ]
    assert _score(_scorer(), [_batch(rows)]) == _score(_scorer(), [_batch(rows)])
