"""The union of sources and the top ALS items, block by block, as a plain loop over Arrow batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gesr_core.join.recommend import ItemTable, keep_first, recommend

BLOCK = pa.list_(
    pa.struct(
        [
            ("user_index", pa.int32()),
            ("user_id", pa.int64()),
            ("own", pa.list_(pa.struct([("item_index", pa.int32()), ("score", pa.float64())]))),
            ("factors", pa.list_(pa.float32())),
        ]
    )
)
# Items 100 to 105 have the indices 0 to 5; 3, 0 and 1 are popular, in this order; 5 has no factor.
ITEMS = ItemTable(
    ids=pa.array([100, 101, 102, 103, 104, 105]),
    popular_index=np.array([3, 0, 1], dtype=np.int32),
    popular_score=np.array([9.0, 8.0, 7.0]),
    als_index_A=np.array([0, 1, 2, 3, 4], dtype=np.int32),
    als_factors_AD=np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 1]], dtype=np.float32),
)


def user(index: int, *, own: list[tuple[int, float]], factors: list[float] | None) -> dict[str, Any]:
    own_structs = [{"item_index": item, "score": score} for item, score in own]
    return {"user_index": index, "user_id": 1000 + index, "own": own_structs, "factors": factors}


def run(blocks: list[list[dict[str, Any]]], *, als_items: int = 3, max_candidates: int = 500) -> dict[int, Any]:
    batch = pa.RecordBatch.from_arrays(
        [pa.array(["2024-01-10"] * len(blocks)), pa.array(blocks, type=BLOCK)], names=["ds", "block"]
    )
    found = recommend(iter([batch]), items={"2024-01-10": ITEMS}, als_items=als_items, max_candidates=max_candidates)
    rows = [row for out in found for row in out.to_pylist()]
    assert all(row["ds"] == "2024-01-10" for row in rows)
    return {row["user_id"]: [tuple(candidate.values()) for candidate in row["candidates"]] for row in rows}


def test_own_items_come_first_then_popular_and_als_in_turn() -> None:
    # scores of the factors (2, 1): item 0: 2, 1: 1, 2: 3, 3: 0, 4: 3
    found = run([[user(0, own=[(5, 4.0)], factors=[2.0, 1.0])]])
    assert found == {
        1000: [
            (105, "own", 4.0),
            (103, "popular", 9.0),
            (102, "als", 3.0),
            (100, "popular", 8.0),
            (104, "als", 3.0),  # ties with 102: the lower index first
            (101, "popular", 7.0),  # als has 100 third: it has its first place already
        ]
    }


def test_a_duplicate_keeps_its_first_source() -> None:
    found = run([[user(0, own=[(3, 1.0), (2, 0.5)], factors=[2.0, 1.0])]])
    assert [source for item, source, _ in found[1000] if item in (103, 102)] == ["own", "own"]
    items = [item for item, _, _ in found[1000]]
    assert len(items) == len(set(items))


def test_the_cut_takes_from_the_end_of_both_sources() -> None:
    found = run([[user(0, own=[(5, 4.0)], factors=[2.0, 1.0])]], max_candidates=4)
    assert [(item, source) for item, source, _ in found[1000]] == [
        (105, "own"),
        (103, "popular"),
        (102, "als"),
        (100, "popular"),
    ]


def test_a_user_without_factors_or_own_items_gets_popular_ones() -> None:
    found = run([[user(0, own=[], factors=None), user(1, own=[(5, 1.0)], factors=[0.0, 1.0])]], als_items=1)
    assert found[1000] == [(103, "popular", 9.0), (100, "popular", 8.0), (101, "popular", 7.0)]
    assert [source for _, source, _ in found[1001]] == ["own", "popular", "als", "popular"]


def test_blocks_are_independent_of_one_another() -> None:
    first, second = user(0, own=[(5, 4.0)], factors=[2.0, 1.0]), user(1, own=[(1, 1.0)], factors=[-1.0, 0.5])
    assert run([[first], [second]]) == run([[first]]) | run([[second]])


def test_strings_are_ids_like_any_other() -> None:
    items = ItemTable(ITEMS.ids.cast(pa.string()), *list(vars(ITEMS).values())[1:])
    block = pa.array([[user(0, own=[(5, 4.0)], factors=None)]], type=BLOCK)
    batch = pa.RecordBatch.from_arrays([pa.array(["d"]), block], names=["ds", "block"])
    (out,) = recommend(iter([batch]), items={"d": items}, als_items=3, max_candidates=2)
    assert [candidate["item_id"] for candidate in out.to_pylist()[0]["candidates"]] == ["105", "103"]


@pytest.mark.parametrize(
    ("slots", "kept"),
    [
        ([4, 7, 4, 9], [True, True, False, True]),
        ([-1, 7, -1, 7], [False, True, False, False]),
        ([1, 2, 3, 4], [True, True, True, False]),
        ([-1, -1, -1, -1], [False] * 4),
    ],
)
def test_only_the_first_distinct_items_are_kept(slots: list[int], kept: list[bool]) -> None:
    assert keep_first(np.array([slots], dtype=np.int32), limit=3).tolist() == [kept]
