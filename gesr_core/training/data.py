"""Training request rows to padded batches: windows of rows, decoded once, shuffled and batched by similar shape.

Only one window is in memory at a time. Which rows make a window, and which requests a batch, depends on the order of
the rows, the settings and the seed alone: not on the reader, nor on how it batched the rows.

Legend: R items of all training dates, B requests, N candidates, P pairs of a window, S tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gesr_core.dates import request_time_us
from gesr_core.errors import InputError
from gesr_core.model.inputs import ItemFeatures, Requests, UserFeatures
from gesr_core.names import Col, label
from gesr_core.runtime.collate import JaggedRequests, decode, pad, pad_candidates
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.training.features import FeatureSpace

# Requests of a window that are sorted by shape together: enough to fill batches of one shape, few enough to mix well.
SORTED_BATCHES: Final = 32
_SHAPE_STEP: Final = 8

Tensors = TypeVar("Tensors")


@dataclass(frozen=True)
class TrainingItems:
    """The item tables of several dates, one block after the other, encoded together.

    Statistics differ from date to date, so an item has one row per date; `blocks` holds, per `ds`, the index of its
    block and the row at which it begins.
    """

    features: ItemFeatures
    blocks: Mapping[str, tuple[ItemIndex, int]]

    def of(self, ds: str) -> ItemFeatures:
        """Return the items as of one date."""
        index, begin = self.blocks[ds]
        return self.features.take(torch.arange(begin, begin + len(index.key_R)))


@dataclass(frozen=True)
class Batch:
    """Padded requests with labels: what one step takes. Everything [B, N] is 0 (or False) at padding.

    `rate_BN` is the probability with which a pair without any label entered its group; `labels_BNS` are 0 or 1.
    `sampling_weight_BN` says how many users a pair's user stands for. `exposed_BN` is False for the extra negatives
    that no retrieval proposed.
    """

    requests: Requests
    labels_BNS: Tensor
    rate_BN: Tensor
    sampling_weight_BN: Tensor
    exposed_BN: Tensor

    @property
    def valid_BN(self) -> Tensor:
        """True where there is a candidate, known to its date's item table."""
        return self.requests.candidate_row_BN >= 0

    def weight_BN(self, *, unexposed: float) -> Tensor:
        """Return the pairs' weights in the loss: the user's, times `unexposed` for extra negatives; 0 at padding."""
        return torch.where(self.exposed_BN, 1.0, unexposed) * self.sampling_weight_BN * self.valid_BN

    def take(self, rows: Tensor) -> Batch:
        """Select requests; the padding stays that of the whole batch."""
        return map_tensors(self, lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device))


def map_tensors(value: Tensors, change: Callable[[Tensor], Tensor]) -> Tensors:
    """Change every tensor in a frozen dataclass of tensors, of such dataclasses and of mappings of them."""
    made: Any = value
    if isinstance(value, Tensor):
        made = change(value)
    elif is_dataclass(value) and not isinstance(value, type):
        made = type(value)(**{f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)})
    elif isinstance(value, Mapping):
        made = {name: map_tensors(part, change) for name, part in value.items()}
    elif isinstance(value, tuple):
        made = tuple(map_tensors(part, change) for part in value)
    return made


def sorted_by_key(items: pa.Table) -> pa.Table:
    """Return an item table in the order of its index: BIGINT ids by id, STRING ids by (`item_key`, id)."""
    if not pa.types.is_string(items.schema.field(Col.ITEM_ID).type):
        return items.sort_by(Col.ITEM_ID).combine_chunks()
    return items.sort_by([(Col.ITEM_KEY, "ascending"), (Col.ITEM_ID, "ascending")]).combine_chunks()


def index_of(items: pa.Table) -> ItemIndex:
    """Return the index of an item table that `sorted_by_key` gave.

    Raises:
        InputError: an item id is there twice, or is null.
    """
    ids = items.column(Col.ITEM_ID).combine_chunks()
    if ids.null_count or len(pc.unique(ids)) < len(ids):
        raise InputError("the item table has a null or repeated item_id")
    if pa.types.is_string(ids.type):
        return ItemIndex.build(_int64(items.column(Col.ITEM_KEY)), ids)
    return ItemIndex.build(_int64(items.column(Col.ITEM_ID)))


def encode_training_items(items: Mapping[str, pa.Table], features: FeatureSpace) -> TrainingItems:
    """Encode the item tables of several dates, `ds` block after `ds` block."""
    blocks, tables, rows = {}, [], 0
    for ds in sorted(items):
        table = sorted_by_key(items[ds])
        blocks[ds] = (index_of(table), rows)
        tables.append(table)
        rows += table.num_rows
    return TrainingItems(features.encode_items(pa.concat_tables(tables)), blocks)


def windows(batches: Iterable[pa.RecordBatch], *, rows: int) -> Iterator[pa.Table]:
    """Regroup rows into windows of exactly `rows` (the last has the rest), however the reader batched them."""
    pending: list[pa.RecordBatch] = []
    waiting = 0
    for batch in batches:
        pending.append(batch)
        waiting += batch.num_rows
        while waiting >= rows:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, rows)
            pending, waiting = table.slice(rows).to_batches(), waiting - rows
    if waiting:
        yield pa.Table.from_batches(pending)


def decode_window(window: pa.Table, *, items: TrainingItems, features: FeatureSpace) -> JaggedRequests:
    """Decode the requests of a window, date by date: each against its own date's items.

    Raises:
        InputError: a date without an item table.
    """
    extras = [*map(label, features.tasks), Col.SAMPLING_RATE, Col.SAMPLING_WEIGHT, Col.EXPOSED]
    parts = []
    for ds in sorted(pc.unique(window.column(Col.DS)).to_pylist()):
        if ds not in items.blocks:
            raise InputError(f"training requests of {ds}, but items only of {sorted(items.blocks)}")
        index, offset = items.blocks[ds]
        rows = window.filter(pc.equal(window.column(Col.DS), ds)).combine_chunks()
        parts.append(
            decode(
                rows.to_batches()[0],
                index=index,
                encode_users=features.encode_users,
                actions=features.actions,
                request_time_s=request_time_us(ds) // 1_000_000,
                row_offset=offset,
                extras=extras,
            )
        )
    return concatenate(parts)


def concatenate(parts: Sequence[JaggedRequests]) -> JaggedRequests:
    """Put decoded requests one after the other."""
    if len(parts) == 1:
        return parts[0]
    return JaggedRequests(
        user=UserFeatures(
            torch.cat([part.user.categorical_BC for part in parts]), torch.cat([part.user.numeric_BF for part in parts])
        ),
        history_offsets=_offsets([part.history_length_B for part in parts]),
        history_row_E=torch.cat([part.history_row_E for part in parts]),
        history_age_s_E=torch.cat([part.history_age_s_E for part in parts]),
        history_action_E=torch.cat([part.history_action_E for part in parts]),
        history_value_E=torch.cat([part.history_value_E for part in parts]),
        candidate_offsets=_offsets([part.count_B for part in parts]),
        candidate_row_P=torch.cat([part.candidate_row_P for part in parts]),
        extras={name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
    )


def plan_batches(
    jagged: JaggedRequests, *, batch_requests: int, max_history: int, generator: torch.Generator | None
) -> list[Tensor]:
    """Cut a window's requests into batches of similar history and candidate counts.

    With a generator, requests are shuffled first and batches last; without, everything keeps its order.
    """
    count = len(jagged.count_B)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    batches: list[Tensor] = []
    for members in order.split(batch_requests * SORTED_BATCHES):
        # Coarse in the history, fine in the candidates: both paddings stay small.
        history = jagged.history_length_B[members].clamp_max(max_history) // _SHAPE_STEP
        shape = history * (int(jagged.count_B.max()) + 1) + jagged.count_B[members]
        batches.extend(members[shape.argsort(stable=True)].split(batch_requests))
    if generator is None:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def make_batch(jagged: JaggedRequests, select: Tensor, *, features: FeatureSpace) -> Batch:
    """Pad the requests `select` to their longest history (at most the configured one) and their most candidates."""
    history_length = min(int(jagged.history_length_B[select].max()), features.max_history)
    candidates = max(1, int(jagged.count_B[select].max()))
    requests = pad(jagged, select, history_length=history_length, candidates=candidates)

    def padded(name: str) -> Tensor:
        return pad_candidates(jagged, jagged.extras[name], select, candidates, fill=0)

    return Batch(
        requests=requests,
        labels_BNS=torch.stack([padded(label(task)) for task in features.tasks], dim=-1),
        rate_BN=padded(Col.SAMPLING_RATE),
        sampling_weight_BN=padded(Col.SAMPLING_WEIGHT),
        exposed_BN=padded(Col.EXPOSED).bool(),
    )


def _offsets(lengths: Sequence[Tensor]) -> Tensor:
    total = torch.cat([lengths[0].new_zeros(1), *lengths])
    return total.cumsum(0)


def _int64(column: pa.ChunkedArray) -> Tensor:
    # A copy: Arrow's buffers are read-only, and torch does not know that.
    return torch.tensor(column.to_numpy(), dtype=torch.int64)
