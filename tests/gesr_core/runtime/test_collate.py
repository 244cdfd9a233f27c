"""Arrow request rows to tensors: slices, nulls, unknown items and padding."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, strategies as st

from gesr_core.model.inputs import UserFeatures
from gesr_core.runtime.collate import JaggedRequests, decode, pad
from gesr_core.runtime.item_index import ItemIndex

COLUMNS: dict[str, pa.DataType] = {
    "history_item_id": pa.list_(pa.int64()),
    "history_time_s": pa.list_(pa.int64()),
    "history_action": pa.list_(pa.string()),
    "history_value": pa.list_(pa.float64()),
    "candidate_item_id": pa.list_(pa.int64()),
    "label_a": pa.list_(pa.int32()),
}


def batch(**lists: list[Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(lists[name], type_) for name, type_ in COLUMNS.items()})


ROWS = batch(
    history_item_id=[[1], [5, 7], None, [9, 3, None]],
    history_time_s=[[1], [50, 70], [], [10, 30, 40]],
    history_action=[["a"], ["buy", None], [], ["click", "buy", "other"]],
    history_value=[[1.0], [5.0, None], [], [float("nan"), 3.0, float("inf")]],
    candidate_item_id=[[1], [5, 7, 8], [], [9, 3]],
    label_a=[[0], [1, 0, 1], [], [0, 1]],
)


def decoded(rows: pa.RecordBatch, *, row_offset: int = 0) -> JaggedRequests:
    return decode(
        rows,
        index=ItemIndex.build(torch.tensor([3, 5, 7])),
        encode_users=lambda b: UserFeatures(torch.zeros(b.num_rows, 0), torch.zeros(b.num_rows, 0)),
        actions=["buy", "click"],
        request_time_s=100,
        row_offset=row_offset,
        extras=["label_a"],
    )


def test_a_slice_is_decoded_from_its_own_rows() -> None:
    jagged = decoded(ROWS.slice(1))
    assert jagged.history_offsets.tolist() == [0, 2, 2, 5]
    assert jagged.history_row_E.tolist() == [1, 2, -1, 0, -1]  # 9 is unknown, null is missing
    assert jagged.history_age_s_E.tolist() == [50, 30, 90, 70, 60]
    assert jagged.history_action_E.tolist() == [1, 0, 2, 1, 0]
    # null, NaN and infinity count as missing
    assert [None if math.isnan(value) else value for value in jagged.history_value_E.tolist()] == [
        5, None, None, 3, None,
    ]  # fmt: skip
    assert jagged.candidate_row_P.tolist() == [1, 2, -1, -1, 0]
    assert jagged.extras["label_a"].tolist() == [1, 0, 1, 0, 1]


def test_known_rows_move_into_their_block_and_unknown_ones_stay_unknown() -> None:
    assert decoded(ROWS, row_offset=100).candidate_row_P.tolist() == [-1, 101, 102, -1, -1, 100]


def test_padding_keeps_the_newest_events_and_marks_the_rest() -> None:
    requests = pad(decoded(ROWS), torch.tensor([3, 1, 2]), history_length=2, candidates=3)
    assert requests.history.row_BT.tolist() == [[0, -1], [1, 2], [-1, -1]]
    assert requests.history.age_s_BT.tolist() == [[70, 60], [50, 30], [0, 0]]
    assert requests.history.valid_BT.tolist() == [[True, True], [True, True], [False, False]]
    assert requests.candidate_row_BN.tolist() == [[-1, 0, -1], [1, 2, -1], [-1, -1, -1]]
    assert requests.count_B.tolist() == [2, 3, 0]


@given(st.lists(st.lists(st.sampled_from([3, 5, 7, 8]), max_size=5), max_size=8), st.integers(0, 4))
def test_decoding_equals_a_loop_over_rows(candidates: list[list[int]], start: int) -> None:
    empty: list[list[Any]] = [[] for _ in candidates]
    rows = batch(
        history_item_id=candidates,
        history_time_s=candidates,
        history_action=[[None] * len(c) for c in candidates],
        history_value=[[1.0] * len(c) for c in candidates],
        candidate_item_id=candidates,
        label_a=empty,
    ).slice(start)
    expected = [{3: 0, 5: 1, 7: 2}.get(item, -1) for row in candidates[start:] for item in row]
    jagged = decoded(rows)
    assert jagged.candidate_row_P.tolist() == jagged.history_row_E.tolist() == expected
    assert jagged.count_B.tolist() == [len(row) for row in candidates[start:]]


def test_string_ids_without_their_values_are_refused() -> None:
    index = ItemIndex.build(torch.tensor([1]), pa.array(["a"]))
    with pytest.raises(ValueError, match="need their values"):
        index.rows(torch.tensor([1]))
