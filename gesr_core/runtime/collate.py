"""Arrow request rows -> tensors. Runs in a Spark Python worker or a plain loop; no JVM, no pandas, no loop over rows.

`decode` turns a RecordBatch into jagged tensors straight from the list columns' child values and offsets; `pad` cuts a
micro-batch of them into the padded shapes that a model takes. The served and the trained score share this file.

Legend: B requests, T history positions, N candidates; `_E` events of all requests, `_P` pairs of all requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gesr_core.model.inputs import History, Requests, UserFeatures
from gesr_core.names import Col
from gesr_core.ops.jagged import lengths, pad_rows
from gesr_core.runtime.item_index import ItemIndex

UserEncoder = Callable[[pa.RecordBatch], UserFeatures]


@dataclass(frozen=True)
class JaggedRequests:
    """B decoded requests: flat values with offsets [B + 1] into them.

    `extras` are more per-candidate values (labels, sampling rates) that share `candidate_offsets`, as float32.
    """

    user: UserFeatures
    history_offsets: Tensor
    history_row_E: Tensor
    history_age_s_E: Tensor
    history_action_E: Tensor
    history_value_E: Tensor
    candidate_offsets: Tensor
    candidate_row_P: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> JaggedRequests:
        """Return the requests on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        extras = {name: value.to(device) for name, value in self.extras.items()}
        return JaggedRequests(user=self.user.to(device), extras=extras, **tensors)

    @property
    def history_length_B(self) -> Tensor:
        return lengths(self.history_offsets)

    @property
    def count_B(self) -> Tensor:
        return lengths(self.candidate_offsets)


def decode(
    batch: pa.RecordBatch,
    *,
    index: ItemIndex,
    encode_users: UserEncoder,
    actions: Sequence[str],
    request_time_s: int,
    row_offset: int = 0,
    extras: Sequence[str] = (),
) -> JaggedRequests:
    """Decode request rows of one `ds`.

    Args:
        batch: request rows (join/requests.py); may be a slice.
        index: items of the table that rows refer to.
        encode_users: turns the user feature columns into vocabulary indices and normalised numbers.
        actions: the vocabulary of actions; an action's index is its place plus 1, unknown ones are 0.
        request_time_s: request time in seconds since 1970 UTC.
        row_offset: added to every known row (training concatenates the item tables of several dates).
        extras: names of further list columns with one value per candidate.
    """
    history_offsets, history_ids = list_column(batch, Col.HISTORY_ITEM_ID)
    candidate_offsets, candidate_ids = list_column(batch, Col.CANDIDATE_ITEM_ID)
    history_rows = _rows(batch, history_ids, Col.HISTORY_ITEM_KEY, index=index, row_offset=row_offset)
    candidate_rows = _rows(batch, candidate_ids, Col.CANDIDATE_ITEM_KEY, index=index, row_offset=row_offset)
    times_s = _integers(list_column(batch, Col.HISTORY_TIME_S)[1])
    action = pc.fill_null(pc.index_in(list_column(batch, Col.HISTORY_ACTION)[1], pa.array(actions, pa.string())), -1)
    return JaggedRequests(
        user=encode_users(batch),
        history_offsets=history_offsets,
        history_row_E=history_rows,
        history_age_s_E=(request_time_s - times_s).to(torch.float32),
        history_action_E=_integers(action) + 1,
        history_value_E=_floats(list_column(batch, Col.HISTORY_VALUE)[1], missing=float("nan")),
        candidate_offsets=candidate_offsets,
        candidate_row_P=candidate_rows,
        extras={name: _floats(list_column(batch, name)[1], missing=0.0) for name in extras},
    )


def pad(
    jagged: JaggedRequests, select: Tensor, *, history_length: int, candidates: int, first_candidate: int = 0
) -> Requests:
    """Cut the requests `select` out and pad them.

    A history longer than `history_length` keeps its newest events. Of the candidates those from `first_candidate` on
    are taken, at most `candidates` of them.
    """

    def padded(values_E: Tensor, fill: int) -> Tensor:
        return pad_rows(values_E, jagged.history_offsets, rows=select, length=history_length, fill=fill, keep="last")

    history = History(
        row_BT=padded(jagged.history_row_E, -1),
        age_s_BT=padded(jagged.history_age_s_E, 0),
        action_BT=padded(jagged.history_action_E, 0),
        value_BT=padded(jagged.history_value_E, 0),
        length_B=jagged.history_length_B[select].clamp_max(history_length),
    )
    user = UserFeatures(jagged.user.categorical_BC[select], jagged.user.numeric_BF[select])
    rows_BN = pad_candidates(jagged, jagged.candidate_row_P, select, candidates, fill=-1, first=first_candidate)
    count_B = (jagged.count_B[select] - first_candidate).clamp(0, candidates)
    return Requests(user, history, rows_BN, count_B)


def pad_candidates(
    jagged: JaggedRequests, values_P: Tensor, select: Tensor, width: int, *, fill: float, first: int = 0
) -> Tensor:
    """Pad a per-candidate value (a row, a label) of the requests `select` to [B, width], from number `first` on."""
    return pad_rows(values_P, jagged.candidate_offsets, rows=select, length=width, fill=fill, skip=first)


def list_column(batch: pa.RecordBatch, name: str) -> tuple[Tensor, pa.Array]:
    """Return a list column's offsets [B + 1] from 0 and its child values; a null list is an empty one.

    `flatten` minds the batch's slice and skips what lies behind null lists; `.values` does neither.
    """
    column = batch.column(name)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(torch.from_numpy(lengths.astype(np.int64)), 0, out=offsets[1:])
    return offsets, column.flatten()


def _rows(batch: pa.RecordBatch, ids: pa.Array, key_name: str, *, index: ItemIndex, row_offset: int) -> Tensor:
    if index.value_R is None:
        rows = index.rows(_integers(ids))
    else:
        rows = index.rows(_integers(list_column(batch, key_name)[1]), ids)
    missing = torch.from_numpy(pc.is_null(ids).to_numpy(zero_copy_only=False)) if ids.null_count else None
    if missing is not None:
        rows = torch.where(missing.to(rows.device), -1, rows)
    return torch.where(rows >= 0, rows + row_offset, rows) if row_offset else rows


def _integers(values: pa.Array) -> Tensor:
    filled = pc.fill_null(values, 0) if values.null_count else values
    # A copy: Arrow's buffers are read-only, and torch does not know that.
    return torch.from_numpy(filled.to_numpy(zero_copy_only=False).astype(np.int64))


def _floats(values: pa.Array, *, missing: float) -> Tensor:
    """As float32; what is null or not finite is `missing`."""
    numbers = pc.cast(values, pa.float32()) if pa.types.is_boolean(values.type) else values
    array = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
    return torch.from_numpy(np.nan_to_num(array, copy=False, nan=missing, posinf=missing, neginf=missing))
