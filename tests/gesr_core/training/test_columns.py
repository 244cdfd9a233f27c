"""Lists and match ids of Arrow columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from gesr_core.training.columns import first_values, match_ids

ITEMS = pa.table({"item_id": pa.array([10, 20, 30, 40]), "creator": pa.array([7, None, 10, 7])})


def test_match_ids_are_equal_exactly_where_values_are_over_all_fields() -> None:
    ids = match_ids(ITEMS, ["creator", "item_id"], lists={}).tolist()
    assert ids == [[1, 2], [0, 3], [2, 4], [1, 5]]  # creator 10 is the item id 10
    assert match_ids(ITEMS, [], lists={}).shape == (4, 0)


def test_match_ids_of_mixed_types_compare_texts() -> None:
    items = ITEMS.set_column(1, "creator", pa.array(["10", None, "x", "20"]))
    ids = match_ids(items, ["creator", "item_id"], lists={})
    assert ids[0, 0] == ids[0, 1]
    assert ids[3, 0] == ids[1, 1]
    assert len(ids.unique()) == 6


TOPICS: list[Any] = [["b", "a", "b", None], [], None, ["c"], ["a", "d", "c", "b"]]


@pytest.mark.parametrize("chunked", [False, True])
def test_lists_keep_their_first_distinct_values_in_the_order_of_their_texts(chunked: bool) -> None:
    # A slice, so that what lies before it must not be read.
    column = pa.array([["x"], *TOPICS], pa.list_(pa.string()))[1:]
    found = first_values(pa.chunked_array([column[:2], column[2:]]) if chunked else column, max_values=3)
    assert (found.rows, found.columns) == (5, 3)
    assert found.row.tolist() == [0, 0, 3, 4, 4, 4]
    assert found.place.tolist() == [0, 1, 0, 0, 1, 2]
    assert found.values.to_pylist() == ["a", "b", "c", "a", "b", "c"]


@given(
    lists=st.lists(st.none() | st.lists(st.none() | st.integers(0, 30), max_size=6), max_size=6),
    max_values=st.integers(1, 4),
)
def test_the_values_of_lists_are_those_that_a_loop_finds(lists: list[Any], max_values: int) -> None:
    found = first_values(pa.array(lists, pa.list_(pa.int32())), max_values=max_values)
    expected = []
    for values in lists:
        distinct = sorted({value for value in values or [] if value is not None}, key=str)[:max_values]
        expected.append(distinct + [-1] * (max_values - len(distinct)))
    numbers = np.array(found.values.to_pylist(), dtype=np.int64)
    assert (found.spread(numbers + 1) - 1).tolist() == expected
