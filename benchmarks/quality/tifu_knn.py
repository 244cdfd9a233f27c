"""TIFU-KNN: a user's decayed item frequencies, blended with those of similar users (Hu et al., SIGIR 2020).

numpy and torch. Ours, because no well-kept package has it. A basket is what a user bought in one day.

Legend: E events, V users, I items, P pairs, C users of one block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.quality.measures import ALL, measure
from benchmarks.quality.prepared import Prepared, TestSet, open_prepared
from gesr_core.dates import request_time_us
from gesr_core.names import Col

_DAY_US: Final = 86_400_000_000
_BLOCK_USERS: Final = 256
_TUNING_REQUESTS: Final = 2_000


@dataclass(frozen=True)
class Decay:
    """How a user's baskets count: `groups` of them, decays within a group and from group to group."""

    within: float
    between: float
    groups: int


@dataclass(frozen=True)
class Choice:
    """All that is tuned: the decay, the neighbours, and the share of the user's own vector."""

    decay: Decay
    neighbours: int
    own_share: float


# The paper's grid around its values for this data set (0.9, 0.7, 7 groups, 300 neighbours, 0.7).
_DECAYS: Final = (Decay(1.0, 1.0, 7), Decay(0.9, 0.7, 7), Decay(0.9, 0.9, 7), Decay(0.9, 0.7, 3))
_NEIGHBOURS: Final = (100, 300, 900)
_OWN_SHARES: Final = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Vectors:
    """User vectors as a sparse matrix [V, I], and what its rows and columns are."""

    matrix: torch.Tensor
    user_ids: np.ndarray
    item_ids: np.ndarray


def basket_weights(place_from_end: np.ndarray, baskets: np.ndarray, decay: Decay) -> np.ndarray:
    """Return the weight of each basket in its user's vector.

    Baskets fall into groups of equal size from the newest on (the oldest group has the rest). A group is the mean of
    its baskets under within^(baskets from its end), a user the mean of the groups under between^(groups from the end).

    Args:
        place_from_end: 0 for a user's newest basket.
        baskets: how many the user has.
        decay: the decays.
    """
    size = -(-baskets // decay.groups)
    groups = -(-baskets // size)
    group, inside = place_from_end // size, place_from_end % size
    members = np.where(group == groups - 1, baskets - (groups - 1) * size, size)
    return decay.within**inside / members * decay.between**group / groups


def user_vectors(user_E: np.ndarray, item_E: np.ndarray, day_E: np.ndarray, *, decay: Decay) -> Vectors:
    """Return the vectors of all users; an item that is twice in a basket counts once."""
    user_ids, user = np.unique(user_E, return_inverse=True)
    item_ids, item = np.unique(item_E, return_inverse=True)
    user, day, item = np.unique(np.stack([user, day_E, item]), axis=1)
    new_user = np.diff(user, prepend=-1) != 0
    new_basket = new_user | (np.diff(day, prepend=day[:1] - 1) != 0)
    basket = np.cumsum(new_basket) - 1
    user_of_basket = user[new_basket]
    baskets_V = np.bincount(user_of_basket, minlength=len(user_ids))
    last_V = np.cumsum(baskets_V) - 1
    from_end = last_V[user_of_basket] - np.arange(len(user_of_basket))
    weight = basket_weights(from_end, baskets_V[user_of_basket], decay)[basket]
    indices = torch.from_numpy(np.stack([user, item]))
    shape = (len(user_ids), len(item_ids))
    matrix = torch.sparse_coo_tensor(indices, torch.from_numpy(weight.astype(np.float32)), shape).coalesce()
    return Vectors(matrix, user_ids, item_ids)


def score(vectors: Vectors, test: TestSet, grid: Sequence[tuple[int, float]]) -> Iterator[np.ndarray]:
    """Yield a value per pair for each (neighbours, own share); unknown users and items get 0.

    Neighbours are the nearest users by Euclidean distance, the user left out.
    """
    rows, columns = vectors.matrix.to_sparse_csr(), vectors.matrix.t().coalesce().to_sparse_csr()
    square_V = torch.zeros(len(vectors.user_ids)).index_add_(
        0, vectors.matrix.indices()[0], vectors.matrix.values() ** 2
    )
    values = [np.zeros(len(test.item_P)) for _ in grid]
    row_P = _places(vectors.user_ids, test.user_P)
    column_P = _places(vectors.item_ids, test.item_P)
    order = np.argsort(row_P, kind="stable")
    order = order[(row_P[order] >= 0) & (column_P[order] >= 0)]
    known = np.unique(row_P[order])
    for block in np.array_split(known, -(-len(known) // _BLOCK_USERS)) if len(known) else []:
        pair = order[np.searchsorted(row_P[order], block[0]) : np.searchsorted(row_P[order], block[-1], side="right")]
        of_block = torch.from_numpy(block)
        own_IC = vectors.matrix.index_select(0, of_block).to_dense().t().contiguous()
        distance_VC = square_V.unsqueeze(1) - 2 * (rows @ own_IC)
        distance_VC[of_block, torch.arange(len(block))] = torch.inf
        most = min(max(k for k, _ in grid), len(vectors.user_ids) - 1)
        nearest_KC = distance_VC.topk(most, dim=0, largest=False).indices
        place = np.searchsorted(block, row_P[pair])
        means = {}
        for neighbours in {k for k, _ in grid}:
            chosen = nearest_KC[: min(neighbours, most)]
            share_VC = torch.zeros(len(vectors.user_ids), len(block)).scatter_(0, chosen, 1.0 / max(1, len(chosen)))
            means[neighbours] = (columns @ share_VC)[column_P[pair], place].numpy()
        own = own_IC[column_P[pair], place].numpy()
        for value, (neighbours, own_share) in zip(values, grid, strict=True):
            value[pair] = own_share * own + (1 - own_share) * means[neighbours]
    yield from values


def vectors_before(prepared: Prepared, ds: str, *, decay: Decay) -> Vectors:
    """Return the vectors from the events before the request time of a ds."""
    events = prepared.events_before(request_time_us(ds))
    columns = (events[name].to_numpy() for name in (Col.USER_ID, Col.ITEM_ID, "event_us"))
    user_E, item_E, event_us = columns
    return user_vectors(user_E, item_E, event_us // _DAY_US, decay=decay)


@lru_cache(maxsize=1)
def tuned(folder: Path) -> tuple[Choice, float]:
    """Return what ranks the validation ds best, and its NDCG@10 there (over a part of the requests)."""
    prepared = open_prepared(folder)
    test = first_requests(prepared.test(prepared.regime.validation), _TUNING_REQUESTS)
    best: tuple[float, Choice] | None = None
    grid = list(itertools.product(_NEIGHBOURS, _OWN_SHARES))
    for decay in _DECAYS:
        vectors = vectors_before(prepared, test.ds, decay=decay)
        for (neighbours, own_share), value in zip(grid, score(vectors, test, grid), strict=True):
            ndcg = measure(test, value).values()[ALL]["ndcg"]
            if best is None or ndcg > best[0]:
                best = ndcg, Choice(decay, neighbours, own_share)
    if best is None:
        raise ValueError("there is nothing to choose from")
    return best[1], best[0]


def first_requests(test: TestSet, units: int) -> TestSet:
    """Cut a test set to its first requests by id (an id says nothing of a user)."""
    kept_P, kept = test.unit_P < units, test.truth_unit < units
    return TestSet(
        ds=test.ds, tasks=test.tasks, unit_U=test.unit_U[:units], user_U=test.user_U[:units],
        time_us_U=test.time_us_U[:units],
        unit_P=test.unit_P[kept_P], item_P=test.item_P[kept_P], label_PS=test.label_PS[kept_P],
        weight_P=test.weight_P[kept_P], truth_unit=test.truth_unit[kept],
        truth_item=test.truth_item[kept], truth_label_S=test.truth_label_S[kept], rows=test.rows,
    )  # fmt: skip


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.searchsorted(ids, wanted).clip(max=len(ids) - 1)
    return np.where(ids[place] == wanted, place, -1)
