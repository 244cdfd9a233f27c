"""Top ALS items, and the union of a user's sources, for blocks of users. Runs in a Spark Python worker or a plain loop.

numpy and Arrow only. A block is one row, so that its matrix product has one shape and gives one result, however Spark
cut partitions and batches. Legend: U users of a block, A items with a factor, D rank, W slots of a user's sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

SOURCES: Final = ("own", "popular", "als")
_EMPTY: Final = -1


@dataclass(frozen=True)
class ItemTable:
    """What every worker needs of the items: ids by item index, the most popular ones, and the factors."""

    ids: pa.Array
    popular_index: Ints
    popular_score: Floats
    als_index_A: Ints
    als_factors_AD: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Slots:
    """Candidates of U users before the cut: item index (-1: empty), score and source number, in retrieval order."""

    index_UW: Ints
    score_UW: Floats
    source_W: npt.NDArray[np.int8]


def recommend(
    batches: Iterator[pa.RecordBatch], *, items: Mapping[str, ItemTable], als_items: int, max_candidates: int
) -> Iterator[pa.RecordBatch]:
    """Turn rows (ds, block of users) into rows (ds, user_id, candidates), one batch per block.

    A block is a list of structs (user_index, user_id, own: list of (item_index, score) in retrieval order, factors:
    list of float, null for a user without). Candidates come in retrieval order: own items first, then popular and als
    items in turn; an item keeps its first place and source; at most `max_candidates` remain.

    Args:
        batches: the rows.
        items: the item side of each ds.
        als_items: how many als items a user gets.
        max_candidates: how many candidates a user gets.
    """
    for batch in batches:
        for ds, block in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
            slots = union_of_sources(block.values, items=items[ds], als_items=als_items)
            kept_UW = keep_first(slots.index_UW, limit=max_candidates)
            yield _as_batch(ds, block.values.field("user_id"), slots, kept_UW, items[ds].ids)


def union_of_sources(users: pa.StructArray, *, items: ItemTable, als_items: int) -> Slots:
    """Lay out the sources of a block of users side by side, in retrieval order, duplicates included."""
    own_index_UW, own_score_UW = _padded_own(users.field("own"))
    als_index_UW, als_score_UW = top_als(users.field("factors"), items=items, als_items=als_items)
    own, popular, als = own_index_UW.shape[1], len(items.popular_index), als_index_UW.shape[1]
    width = own + 2 * max(popular, als)
    index_UW = np.full((len(users), width), _EMPTY, dtype=np.int32)
    score_UW = np.zeros((len(users), width))
    source_W = np.zeros(width, dtype=np.int8)
    places = (slice(0, own), slice(own, own + 2 * popular, 2), slice(own + 1, own + 1 + 2 * als, 2))
    found = ((own_index_UW, own_score_UW), (items.popular_index, items.popular_score), (als_index_UW, als_score_UW))
    for source, (place, (index, score)) in enumerate(zip(places, found, strict=True)):
        index_UW[:, place], score_UW[:, place], source_W[place] = index, score, source
    return Slots(index_UW, score_UW, source_W)


def top_als(factors: pa.ListArray, *, items: ItemTable, als_items: int) -> tuple[Ints, Floats]:
    """Return index and score of the `als_items` best items per user by descending score, ties by item index.

    A user without factors gets empty slots. Among items that tie at the last place, which one is in is left to numpy's
    partition; it is the same one for the same block.
    """
    count = min(als_items, len(items.als_index_A))
    index_UW = np.full((len(factors), count), _EMPTY, dtype=np.int32)
    score_UW = np.zeros((len(factors), count))
    known = np.flatnonzero(factors.is_valid().to_numpy(zero_copy_only=False))
    if not count or not len(known):
        return index_UW, score_UW
    factors_UD = factors.flatten().to_numpy().reshape(len(known), -1).astype(np.float32, copy=False)
    scores_UA = factors_UD @ items.als_factors_AD.T
    best_UW = np.sort(np.argpartition(-scores_UA, count - 1, axis=1)[:, :count], axis=1)
    best_score_UW = np.take_along_axis(scores_UA, best_UW, axis=1)
    order_UW = np.argsort(-best_score_UW, axis=1, kind="stable")
    index_UW[known] = items.als_index_A[np.take_along_axis(best_UW, order_UW, axis=1)]
    score_UW[known] = np.take_along_axis(best_score_UW, order_UW, axis=1)
    return index_UW, score_UW


def keep_first(index_UW: Ints, *, limit: int) -> npt.NDArray[np.bool_]:
    """Mark each user's first `limit` distinct items, at their first place."""
    order_UW = np.argsort(index_UW, axis=1, kind="stable")
    sorted_UW = np.take_along_axis(index_UW, order_UW, axis=1)
    first_sorted_UW = np.ones_like(sorted_UW, dtype=bool)
    first_sorted_UW[:, 1:] = sorted_UW[:, 1:] != sorted_UW[:, :-1]
    first_UW = np.empty_like(first_sorted_UW)
    np.put_along_axis(first_UW, order_UW, first_sorted_UW, axis=1)
    kept_UW = first_UW & (index_UW != _EMPTY)
    return kept_UW & (np.cumsum(kept_UW, axis=1) <= limit)


def _padded_own(own: pa.ListArray) -> tuple[Ints, Floats]:
    counts_U = own.value_lengths().to_numpy()
    width = int(counts_U.max(initial=0))
    filled_UW = np.arange(width) < counts_U[:, None]
    index_UW = np.full(filled_UW.shape, _EMPTY, dtype=np.int32)
    score_UW = np.zeros(filled_UW.shape)
    flat = own.flatten()
    index_UW[filled_UW] = flat.field("item_index").to_numpy()
    score_UW[filled_UW] = flat.field("score").to_numpy()
    return index_UW, score_UW


def _as_batch(
    ds: str, user_ids: pa.Array, slots: Slots, kept_UW: npt.NDArray[np.bool_], ids: pa.Array
) -> pa.RecordBatch:
    offsets = np.concatenate([[0], np.cumsum(kept_UW.sum(axis=1))]).astype(np.int32)
    source_UW = np.broadcast_to(slots.source_W, kept_UW.shape)
    columns: dict[str, Any] = {
        "item_id": ids.take(pa.array(slots.index_UW[kept_UW])),
        "source": pa.array(SOURCES).take(pa.array(source_UW[kept_UW])),
        "retrieval_score": pa.array(slots.score_UW[kept_UW]),
    }
    structs = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    candidates = pa.ListArray.from_arrays(pa.array(offsets), structs)
    ds_column = pa.repeat(pa.scalar(ds), len(user_ids))
    return pa.RecordBatch.from_arrays([ds_column, user_ids, candidates], names=["ds", "user_id", "candidates"])
