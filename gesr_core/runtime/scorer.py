"""Arrow request rows in, Arrow score rows out: decode, plan, score, best K, encode. Runs in a Spark Python worker or a
plain loop; no JVM.

Requests arrive sorted by (shard, user, request). The plan is a pure function of a shard's requests and the recorded
settings: windows of whole users, never across shards; in a window, requests of one shape bucket in their order, cut by
pairs. How Arrow batched the rows does not matter, so a repeated run gives the same bits.

Legend: B requests, N candidates, S tasks; `_P` pairs of a window, `_X` selected pairs (at most K per request).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from gesr_core.model.build import Model
from gesr_core.model.inputs import ItemState
from gesr_core.names import Col, logit
from gesr_core.ops.jagged import lengths
from gesr_core.runtime.collate import JaggedRequests, UserEncoder, decode, list_column, pad
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.schema import UNKNOWN_ITEM

_REJECTED_FIELDS = (Col.ITEM_ID, Col.REASON)


@dataclass(frozen=True)
class ScorerSettings:
    """What the scores of a run depend on besides checkpoint and item states; recorded in the manifest.

    `score_weights` are the weights of the task logits in the score, in the order of `tasks`.
    """

    request_time_s: int
    tasks: tuple[str, ...]
    score_weights: tuple[float, ...]
    top_k: int
    batch_pairs: int
    plan_window_requests: int
    history_buckets: tuple[int, ...]
    candidate_buckets: tuple[int, ...]


@dataclass(frozen=True)
class MicroBatch:
    """Requests of a window that are scored together, padded to one shape."""

    select: Tensor
    history_length: int
    candidates: int


@dataclass(frozen=True)
class _Selected:
    """The best pairs of some requests: request number, pair number in the window, score, logits."""

    request_X: Tensor
    pair_X: Tensor
    score_X: Tensor
    logits_XS: Tensor


class Scorer:
    """A model with its item states, ready to score request rows."""

    def __init__(
        self,
        model: nn.Module,
        *,
        items: ItemState,
        index: ItemIndex,
        encode_users: UserEncoder,
        actions: Sequence[str],
        settings: ScorerSettings,
        device: torch.device,
    ) -> None:
        # nn.Module types its attributes as tensors; what a model is stands in model.build.Model.
        self.model = cast(Model, model.eval().to(device))
        self.items = items.map(lambda tensor: tensor.to(device))
        self.index = index
        self.encode_users = encode_users
        self.actions = tuple(actions)
        self.settings = settings
        self.device = device
        self.weight_S = torch.tensor(settings.score_weights, dtype=torch.float32, device=device)

    def score(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one row per user: user, shard, the best K candidates, what was rejected, and counts."""
        for _, scored in self.score_windows(batches):
            yield scored

    def score_windows(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Yield each window of request rows with its score rows."""
        for window in windows(batches, requests=self.settings.plan_window_requests):
            yield window, self.score_window(window)

    @torch.inference_mode()
    def score_window(self, window: pa.RecordBatch) -> pa.RecordBatch:
        """Score the whole users of one window."""
        jagged = decode(
            window,
            index=self.index,
            encode_users=self.encode_users,
            actions=self.actions,
            request_time_s=self.settings.request_time_s,
        )
        plan = plan_micro_batches(jagged.history_length_B, jagged.count_B, settings=self.settings)
        selected = [self._best(jagged, micro_batch) for micro_batch in plan]
        return encode(window, jagged, _concatenate(selected, tasks=len(self.settings.tasks)), settings=self.settings)

    def _best(self, jagged: JaggedRequests, micro_batch: MicroBatch) -> _Selected:
        """Score a micro-batch and keep each request's best K known candidates; ties go to the smaller item id."""
        logits_BNS, known_BN = self.logits(jagged, micro_batch)
        score_BN = (logits_BNS @ self.weight_S).masked_fill(~known_BN, -torch.inf)
        k = min(self.settings.top_k, score_BN.shape[1])
        # Candidates are sorted by item id and the sort is stable: torch.topk would break ties at will.
        order_BK = score_BN.sort(dim=1, descending=True, stable=True).indices[:, :k]
        kept_BK = known_BN.gather(1, order_BK)
        row_X, place_X = kept_BK.nonzero(as_tuple=True)
        candidate_X = order_BK[row_X, place_X]
        request_X = micro_batch.select[row_X.cpu()]
        return _Selected(
            request_X=request_X,
            pair_X=jagged.candidate_offsets[:-1][request_X] + candidate_X.cpu(),
            score_X=score_BN[row_X, candidate_X].cpu(),
            logits_XS=logits_BNS[row_X, candidate_X].cpu(),
        )

    def logits(self, jagged: JaggedRequests, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the logits [B, N, S] of a micro-batch and which candidates [B, N] are items of the table."""
        requests = pad(
            jagged, micro_batch.select, history_length=micro_batch.history_length, candidates=micro_batch.candidates
        ).to(self.device)
        history_items = self.items.take(requests.history.row_BT)
        user_state = self.model.encode_user(requests.history, history_items, requests.user)
        logits_BNS = self.model.score(user_state, self.items.take(requests.candidate_row_BN))
        return logits_BNS.float(), requests.candidate_row_BN >= 0


def windows(batches: Iterable[pa.RecordBatch], *, requests: int) -> Iterator[pa.RecordBatch]:
    """Regroup sorted request rows into windows of whole users of one shard.

    A window closes at the first user boundary at or after `requests` rows, and at every shard boundary.
    """
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        table = _combine(pending)
        cuts = window_ends(table.column(Col.SHARD), table.column(Col.USER_ID), requests=requests)
        for start, end in pairwise([0, *cuts]):
            yield table.slice(start, end - start)
        pending = [table.slice(cuts[-1])] if cuts else [table]
    if pending and (rest := _combine(pending)).num_rows:
        yield rest


def window_ends(shards: pa.Array, users: pa.Array, *, requests: int) -> list[int]:
    """Return the row numbers at which windows end; rows after the last end wait for more.

    Only a boundary that was seen from both sides ends a window, so the ends do not depend on the batching.
    """
    if len(shards) < 2:
        return []
    shard = shards.to_numpy(zero_copy_only=False)
    new_shard = np.flatnonzero(shard[1:] != shard[:-1]) + 1
    new_user = boundaries(users)
    ends: list[int] = []
    start = 0
    for shard_end in [*new_shard.tolist(), None]:
        limit = len(shards) if shard_end is None else shard_end
        inner = new_user[(new_user > start) & (new_user < limit)]
        while (place := int(np.searchsorted(inner, start + requests))) < len(inner):
            start = int(inner[place])
            ends.append(start)
        if shard_end is not None:
            ends.append(shard_end)
            start = shard_end
    return ends


def boundaries(users: pa.Array) -> np.ndarray:
    """Return the rows at which another user begins (null is a user of its own)."""
    if len(users) < 2:
        return np.empty(0, dtype=np.int64)
    before, after = users.slice(0, len(users) - 1), users.slice(1)
    same = pc.fill_null(pc.equal(before, after), False)
    both_null = pc.and_(pc.is_null(before), pc.is_null(after))
    return np.flatnonzero(~pc.or_(same, both_null).to_numpy(zero_copy_only=False)) + 1


def plan_micro_batches(history_length_B: Tensor, count_B: Tensor, *, settings: ScorerSettings) -> list[MicroBatch]:
    """Group requests by shape bucket, in their order, and cut each group by pairs.

    Requests without candidates are in no micro-batch. A history longer than the last bucket is truncated to its newest
    events by `pad`; more candidates than the last bucket make a bucket of their own.
    """
    history_bucket_B = _bucket(history_length_B.clamp_max(settings.history_buckets[-1]), settings.history_buckets)
    candidate_bucket_B = _bucket(count_B, settings.candidate_buckets)
    shapes = torch.stack([history_bucket_B, candidate_bucket_B], dim=1)
    plan = []
    for history_length, candidates in torch.unique(shapes[count_B > 0], dim=0).tolist():
        members = ((history_bucket_B == history_length) & (candidate_bucket_B == candidates) & (count_B > 0)).nonzero()
        for select in members.squeeze(1).split(max(1, settings.batch_pairs // candidates)):
            plan.append(MicroBatch(select, history_length, candidates))
    return plan


def _bucket(size_B: Tensor, buckets: Sequence[int]) -> Tensor:
    edges = torch.tensor(buckets, dtype=torch.int64)
    place = torch.searchsorted(edges, size_B)
    return torch.where(place < len(edges), edges[place.clamp_max(len(edges) - 1)], size_B)


def encode(
    window: pa.RecordBatch, jagged: JaggedRequests, selected: _Selected, *, settings: ScorerSettings
) -> pa.RecordBatch:
    """Merge the requests of each user, keep the best K and build the score rows from offsets."""
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
    known_P = (jagged.candidate_row_P >= 0).numpy()
    user_P = np.repeat(user_of_request, jagged.count_B.numpy())
    starts = pa.array(user_starts)
    return pa.RecordBatch.from_arrays(
        [
            window.column(Col.SHARD).take(starts),
            window.column(Col.USER_ID).take(starts),
            _lists(ranked, user_X[order], users),
            _rejected(window, user_of_request, item_ids.filter(pa.array(~known_P)), user_P[~known_P], users),
            pa.array(_sum_by_user(window.column(Col.CANDIDATES_IN).to_numpy(), user_of_request, users)),
            pa.array(_sum_by_user(known_P, user_P, users)),
        ],
        names=[Col.SHARD, Col.USER_ID, Col.RANKED, Col.REJECTED, Col.CANDIDATES_IN, Col.CANDIDATES_SCORED],
    )


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
    totals = np.zeros(users, dtype=np.int64)
    np.add.at(totals, user, values.astype(np.int64))
    return totals


def _concatenate(parts: Sequence[_Selected], *, tasks: int) -> _Selected:
    if not parts:
        empty = torch.zeros(0, dtype=torch.int64)
        return _Selected(empty, empty, torch.zeros(0), torch.zeros(0, tasks))
    return _Selected(
        torch.cat([p.request_X for p in parts]),
        torch.cat([p.pair_X for p in parts]),
        torch.cat([p.score_X for p in parts]),
        torch.cat([p.logits_XS for p in parts]),
    )


def _combine(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    columns = [pa.concat_arrays([batch.column(i) for batch in batches]) for i in range(batches[0].num_columns)]
    return pa.RecordBatch.from_arrays(columns, schema=batches[0].schema)
