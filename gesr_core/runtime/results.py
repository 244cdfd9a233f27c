"""The best pairs of a window -> Arrow score rows, one per user, as lists built from offsets. No JVM, no loop over rows.

Legend: P pairs of a window, X selected pairs (at most K per request), S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gesr_core.names import Col, logit
from gesr_core.ops.jagged import lengths
from gesr_core.runtime.collate import list_column
from gesr_core.runtime.plan import ScorerSettings, boundaries
from gesr_core.schema import UNKNOWN_ITEM

_REJECTED_FIELDS = (Col.ITEM_ID, Col.REASON)


@dataclass(frozen=True)
class Selected:
    """The best pairs of some requests: request number, pair number in the window, score, logits."""

    request_X: Tensor
    pair_X: Tensor
    score_X: Tensor
    logits_XS: Tensor

    @staticmethod
    def together(parts: Sequence[Selected], *, tasks: int) -> Selected:
        """Put the parts of a window together."""
        if not parts:
            empty = torch.zeros(0, dtype=torch.int64)
            return Selected(empty, empty, torch.zeros(0), torch.zeros(0, tasks))
        return Selected(*(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts), strict=True)))


def encode(
    window: pa.RecordBatch, selected: Selected, *, known_P: np.ndarray, count_B: np.ndarray, settings: ScorerSettings
) -> pa.RecordBatch:
    """Merge the requests of each user, keep the best K and build the score rows from offsets.

    `known_P` says which candidates are items of the table, `count_B` how many each request has.
    """
    user_starts = np.concatenate([[0], boundaries(window.column(Col.USER_ID))]).astype(np.int64)
    user_of_request = np.zeros(window.num_rows, dtype=np.int64)
    user_of_request[user_starts[1:]] = 1
    user_of_request = np.cumsum(user_of_request)
    users = len(user_starts)
    item_ids = list_column(window, Col.CANDIDATE_ITEM_ID)[1]

    user_X = user_of_request[selected.request_X.numpy()]
    # Pairs of a user are numbered in the order of their item ids, also across requests.
    order = np.lexsort((selected.pair_X.numpy(), -selected.score_X.numpy(), user_X))
    rank_X = _place_in_group(user_X[order]) + 1
    order, rank_X = order[rank_X <= settings.top_k], rank_X[rank_X <= settings.top_k]
    ranked = pa.StructArray.from_arrays(
        [
            item_ids.take(pa.array(selected.pair_X.numpy()[order])),
            pa.array(rank_X.astype(np.int32)),
            pa.array(selected.score_X.numpy()[order]),
            *(pa.array(selected.logits_XS[:, s].numpy()[order]) for s in range(len(settings.tasks))),
        ],
        names=[Col.ITEM_ID, Col.RANK, Col.SCORE, *map(logit, settings.tasks)],
    )
    user_P = np.repeat(user_of_request, count_B)
    starts = pa.array(user_starts)
    # All requests of a user have the same history.
    events_B = lengths(list_column(window, Col.HISTORY_ITEM_ID)[0]).numpy()
    return pa.RecordBatch.from_arrays(
        [
            window.column(Col.SHARD).take(starts),
            window.column(Col.USER_ID).take(starts),
            _lists(ranked, user_X[order], users),
            _rejected(window, user_of_request, item_ids.filter(pa.array(~known_P)), user_P[~known_P], users),
            pa.array(_sum_by_user(window.column(Col.CANDIDATES_IN).to_numpy(), user_of_request, users)),
            pa.array(_sum_by_user(known_P, user_P, users)),
            pa.array(events_B[user_starts].astype(np.int64)),
        ],
        names=[
            Col.SHARD, Col.USER_ID, Col.RANKED, Col.REJECTED, Col.CANDIDATES_IN, Col.CANDIDATES_SCORED,
            Col.HISTORY_EVENTS,
        ],
    )  # fmt: skip


def _rejected(
    window: pa.RecordBatch, user_of_request: np.ndarray, unknown_ids: pa.Array, unknown_user: np.ndarray, users: int
) -> pa.ListArray:
    """What was rejected before the scorer, and then the candidates that the item table lacks."""
    offsets, earlier = list_column(window, Col.REJECTED)
    earlier_user = np.repeat(user_of_request, lengths(offsets).numpy())
    item_ids = pa.concat_arrays([earlier.field(Col.ITEM_ID), unknown_ids])
    reasons = pa.concat_arrays([earlier.field(Col.REASON), pa.array([UNKNOWN_ITEM] * len(unknown_ids), pa.string())])
    user = np.concatenate([earlier_user, unknown_user])
    order = np.argsort(user, kind="stable")
    entries = pa.StructArray.from_arrays([item_ids, reasons], names=list(_REJECTED_FIELDS)).take(pa.array(order))
    return _lists(entries, user[order], users)


def _lists(values: pa.Array, group: np.ndarray, groups: int) -> pa.ListArray:
    """Make one list per group from values that are sorted by group."""
    offsets = np.zeros(groups + 1, dtype=np.int32)
    np.cumsum(np.bincount(group, minlength=groups), out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _place_in_group(group: np.ndarray) -> np.ndarray:
    """Number the members of each run of equal values from 0."""
    place = np.arange(len(group))
    if not len(group):
        return place
    starts = np.concatenate([[0], np.flatnonzero(group[1:] != group[:-1]) + 1])
    return place - np.repeat(starts, np.diff(np.append(starts, len(group))))


def _sum_by_user(values: np.ndarray, user: np.ndarray, users: int) -> np.ndarray:
    # Doubles hold counts exactly up to 2^53.
    return np.bincount(user, weights=values, minlength=users).astype(np.int64)
