"""Cut request rows into windows, and windows into micro-batches: a pure function of a shard and recorded settings.

Requests arrive sorted by (shard, part, user, request). A window is whole users of one part of a shard; in a window,
requests of one shape bucket stand together in their order, cut by pairs and by bytes. How Arrow batched the rows does
not matter.

Legend: B requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gesr_core.names import Col
from gesr_core.runtime.forms import Compiled, Precision

# Bytes that one request needs while it is scored, by its padded history length and number of candidates.
BytesOf = Callable[[int, int], int]


@dataclass(frozen=True)
class ScorerSettings:
    """What the scores of a run depend on besides checkpoint and item states; recorded in the manifest.

    `score_weights` are the weights of the task logits in the score, in the order of `tasks`. A micro-batch holds at
    most `batch_pairs` padded pairs and needs at most `batch_bytes` as they are counted beforehand (None: not bounded),
    but always one request. `precision` and `compiled` are the model's form (forms.py).
    """

    request_time_s: int
    tasks: tuple[str, ...]
    score_weights: tuple[float, ...]
    top_k: int
    batch_pairs: int
    plan_window_requests: int
    history_buckets: tuple[int, ...]
    candidate_buckets: tuple[int, ...]
    batch_bytes: int | None = None
    precision: Precision = "fp32"
    compiled: Compiled = "off"


@dataclass(frozen=True)
class MicroBatch:
    """Requests of a window that are scored together, padded to one shape, from candidate number `first` on."""

    select: Tensor
    history_length: int
    candidates: int
    first: int = 0

    def pieces(self, halvings: int) -> list[MicroBatch]:
        """Cut into pieces of half the size, `halvings` times: down to one request, then to slices of its candidates.

        Raises:
            ValueError: there are no pieces that small; `most_halvings` says how often it can be done.
        """
        if not 0 <= halvings <= self.most_halvings:
            raise ValueError(f"{halvings} halvings of a micro-batch that bears {self.most_halvings}")
        requests = _halved(len(self.select), halvings)
        width = _halved(self.candidates, max(0, halvings - _halvings_to_one(len(self.select))))
        return [
            MicroBatch(select, self.history_length, min(width, self.candidates - first), self.first + first)
            for select in self.select.split(requests)
            for first in range(0, self.candidates, width)
        ]

    @property
    def most_halvings(self) -> int:
        """How often it can be halved until a piece is one candidate of one request."""
        return _halvings_to_one(len(self.select)) + _halvings_to_one(self.candidates)


def windows(batches: Iterable[pa.RecordBatch], *, requests: int) -> Iterator[pa.RecordBatch]:
    """Regroup sorted request rows into windows of whole users of one part of a shard.

    A window closes at the first user boundary at or after `requests` rows, and where another part or shard begins.
    """
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        table = _combine(pending)
        cuts = window_ends(table, requests=requests)
        for start, end in pairwise([0, *cuts]):
            yield table.slice(start, end - start)
        pending = [table.slice(cuts[-1])] if cuts else [table]
    if pending and (rest := _combine(pending)).num_rows:
        yield rest


def window_ends(rows: pa.RecordBatch, *, requests: int) -> list[int]:
    """Return the numbers of the request rows at which windows end; rows after the last end wait for more.

    Only a boundary that was seen from both sides ends a window, so the ends do not depend on the batching.
    """
    if rows.num_rows < 2:
        return []
    place = np.stack([rows.column(name).to_numpy(zero_copy_only=False) for name in (Col.SHARD, Col.PART)])
    new_part = np.flatnonzero((place[:, 1:] != place[:, :-1]).any(axis=0)) + 1
    new_user = boundaries(rows.column(Col.USER_ID))
    ends: list[int] = []
    start = 0
    for part_end in [*new_part.tolist(), None]:
        limit = rows.num_rows if part_end is None else part_end
        inner = new_user[(new_user > start) & (new_user < limit)]
        while (nearest := int(np.searchsorted(inner, start + requests))) < len(inner):
            start = int(inner[nearest])
            ends.append(start)
        if part_end is not None:
            ends.append(part_end)
            start = part_end
    return ends


def boundaries(users: pa.Array) -> np.ndarray:
    """Return the rows at which another user begins (null is a user of its own)."""
    if len(users) < 2:
        return np.empty(0, dtype=np.int64)
    before, after = users.slice(0, len(users) - 1), users.slice(1)
    same = pc.fill_null(pc.equal(before, after), False)
    both_null = pc.and_(pc.is_null(before), pc.is_null(after))
    return np.flatnonzero(~pc.or_(same, both_null).to_numpy(zero_copy_only=False)) + 1


def plan_micro_batches(
    history_length_B: Tensor, count_B: Tensor, *, settings: ScorerSettings, bytes_of: BytesOf | None = None
) -> list[MicroBatch]:
    """Group requests by shape bucket, in their order, and cut each group by pairs and, with `bytes_of`, by bytes.

    Requests without candidates are in no micro-batch. A history longer than the last bucket is truncated to its newest
    events by `pad`; more candidates than the last bucket make a bucket of their own.
    """
    history_bucket_B = _bucket(history_length_B.clamp_max(settings.history_buckets[-1]), settings.history_buckets)
    candidate_bucket_B = _bucket(count_B, settings.candidate_buckets)
    shapes = torch.stack([history_bucket_B, candidate_bucket_B], dim=1)
    plan = []
    for history_length, candidates in torch.unique(shapes[count_B > 0], dim=0).tolist():
        members = ((history_bucket_B == history_length) & (candidate_bucket_B == candidates) & (count_B > 0)).nonzero()
        most = settings.batch_pairs // candidates
        if bytes_of is not None and settings.batch_bytes is not None:
            most = min(most, settings.batch_bytes // bytes_of(history_length, candidates))
        most = max(1, most)
        if settings.compiled == "graphs":
            # A graph is of one shape: few numbers of requests are to occur, and full micro-batches to need no padding.
            most = 1 << (most.bit_length() - 1)
        for select in members.squeeze(1).split(most):
            plan.append(MicroBatch(select, history_length, candidates))
    return plan


def power_of_two_requests(select: Tensor) -> Tensor:
    """Return the requests `select`, the last repeated until they are a power of two in number."""
    missing = (1 << (len(select) - 1).bit_length()) - len(select)
    return torch.cat([select, select[-1:].expand(missing)])


def _halved(size: int, times: int) -> int:
    """Return the size of a half, so many times over, rounded up."""
    return -(-size >> times)


def _halvings_to_one(size: int) -> int:
    return (size - 1).bit_length()


def _bucket(size_B: Tensor, buckets: Sequence[int]) -> Tensor:
    edges = torch.tensor(buckets, dtype=torch.int64)
    place = torch.searchsorted(edges, size_B)
    return torch.where(place < len(edges), edges[place.clamp_max(len(edges) - 1)], size_B)


def _combine(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    columns = [pa.concat_arrays([batch.column(i) for batch in batches]) for i in range(batches[0].num_columns)]
    return pa.RecordBatch.from_arrays(columns, schema=batches[0].schema)
