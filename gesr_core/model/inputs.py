"""What passes between collate, the models and the scorer. Tensors only; knows torch alone.

Legend: R items, B requests, T history positions, N candidates, C columns of the categorical features (one each; a
multi-valued one has as many as its lists may hold), F numeric features, M columns of the match fields (the item fields
that hard matching compares), V raw values that event signals compare with, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemFeatures:
    """Encoded features of R items.

    `index_R` and `categorical_RC` are vocabulary indices, 0 = unknown or missing; `numeric_RF` is normalised, missing
    values stand at 0. `match_RM` are ids that are equal exactly when the raw values are; they are comparable within one
    item table only, and 0 (missing) never matches. `raw_RV` are numbers as the table has them, 0 where one is missing.
    """

    index_R: Tensor
    categorical_RC: Tensor
    numeric_RF: Tensor
    match_RM: Tensor
    raw_RV: Tensor

    def take(self, rows: Tensor) -> ItemFeatures:
        """Select items by row, in the shape of `rows` (all rows valid)."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> ItemFeatures:
        """Change every tensor."""
        return ItemFeatures(*(change(tensor) for tensor in vars(self).values()))


class _Taken(Mapping[str, Tensor]):
    """What is taken of tensors when it is asked for: of a history's events a model may need less than of candidates."""

    def __init__(self, tensors: Mapping[str, Tensor], take: Callable[[Tensor], Tensor]) -> None:
        self._tensors, self._take = tensors, take
        self._taken: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._taken:
            self._taken[name] = self._take(self._tensors[name])
        return self._taken[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class ItemState:
    """What `encode_items` keeps of R items: computed once per item, shipped with the checkpoint.

    `vector_RD` is the item tower's output, `token_RD` the item's input token (of a history event and of a candidate),
    `match_RM` the match ids of `ItemFeatures`. `extra` holds what one model alone keeps, by name; the first dimension
    of every tensor is R.
    """

    vector_RD: Tensor
    token_RD: Tensor
    match_RM: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name; `of` takes them back."""
        return {"vector_RD": self.vector_RD, "token_RD": self.token_RD, "match_RM": self.match_RM, **self.extra}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> ItemState:
        """Put together what `tensors` gave."""
        extra = dict(tensors)
        return ItemState(extra.pop("vector_RD"), extra.pop("token_RD"), extra.pop("match_RM"), extra)

    @property
    def nbytes(self) -> int:
        """The size of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> ItemState:
        """Change every tensor."""
        return ItemState.of({name: change(tensor) for name, tensor in self.tensors().items()})

    def take(self, rows: Tensor) -> ItemState:
        """Select items by row; row -1 (padding, or an item that is not in the table) gives zeros, which never match."""
        if not len(self.vector_RD):
            return self.map(lambda tensor: tensor.new_zeros(*rows.shape, *tensor.shape[1:]))
        flat_V = rows.flatten()
        unknown_V, safe_V = flat_V < 0, flat_V.clamp_min(0)
        # Few rows are unknown; where counting them waits for nothing, theirs alone are touched.
        unknown_U = unknown_V.nonzero().squeeze(1) if rows.device.type == "cpu" else None

        def taken(tensor: Tensor) -> Tensor:
            # Not tensor[rows], which takes four times as long.
            found = tensor.index_select(0, safe_V)
            if unknown_U is not None:
                found = found.index_fill_(0, unknown_U, 0)
            else:
                found = found.masked_fill_(unknown_V.view(-1, *[1] * (tensor.dim() - 1)), 0)
            return found.view(*rows.shape, *tensor.shape[1:])

        vector, token, match = map(taken, (self.vector_RD, self.token_RD, self.match_RM))
        return ItemState(vector, token, match, _Taken(self.extra, taken))


@dataclass(frozen=True)
class UserFeatures:
    """Encoded features of B users, as `ItemFeatures` has them."""

    categorical_BC: Tensor
    numeric_BF: Tensor

    def to(self, device: torch.device) -> UserFeatures:
        """Return the features on `device`."""
        return UserFeatures(self.categorical_BC.to(device), self.numeric_BF.to(device))


@dataclass(frozen=True)
class History:
    """B padded histories, oldest to newest from position 0; positions from `length_B` on are padding.

    `row_BT` is the event's item as a row of the item table (-1: padding, or an item that is not in it), `age_s_BT` the
    seconds from the event to the request time (0 at padding), `action_BT` a vocabulary index (0 = unknown or
    padding), `value_BT` the event's value (NaN when missing, 0 at padding).
    """

    row_BT: Tensor
    age_s_BT: Tensor
    action_BT: Tensor
    value_BT: Tensor
    length_B: Tensor

    @property
    def valid_BT(self) -> Tensor:
        """True at events, False at padding."""
        return torch.arange(self.row_BT.shape[1], device=self.row_BT.device) < self.length_B.unsqueeze(-1)


@dataclass(frozen=True)
class Requests:
    """A padded batch of B requests; `candidate_row_BN` is -1 from `count_B` on."""

    user: UserFeatures
    history: History
    candidate_row_BN: Tensor
    count_B: Tensor

    def to(self, device: torch.device) -> Requests:
        """Return the batch on `device`."""
        h = self.history
        history = History(*(t.to(device) for t in (h.row_BT, h.age_s_BT, h.action_BT, h.value_BT, h.length_B)))
        return Requests(self.user.to(device), history, self.candidate_row_BN.to(device), self.count_B.to(device))
