"""Count the bytes that scoring a request takes, by running one and watching what is allocated. No JVM.

Counted, not written down module by module: a model that changes is counted as it is. The count follows from the model's
shapes and the request's sizes alone, so a plan that is made from it is made again the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gesr_core.model.build import Model
from gesr_core.model.inputs import History, ItemState, UserFeatures
from gesr_core.runtime.forms import Precision, computing


class LiveBytes(TorchDispatchMode):
    """Watches the tensors that are made while it is on; `peak` is the most bytes that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A view, or an operation in place, gives the memory of what it was given: nothing new.
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {t.untyped_storage()._cdata: t for t in tree_leaves(result) if isinstance(t, Tensor)}
        for address, tensor in made.items():
            if address not in given:
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


@torch.inference_mode()
def request_bytes(
    model: Model,
    *,
    items: ItemState,
    user: UserFeatures,
    history_length: int,
    candidates: int,
    device: torch.device,
    precision: Precision = "fp32",
) -> int:
    """Return the most bytes that are held at once while one request is scored, besides weights and item states.

    Args:
        model: on `device`.
        items: item states, for their widths.
        user: features of at least one user, for their widths.
        history_length: padded events.
        candidates: padded candidates.
        device: where it runs.
        precision: in which.
    """
    one_user = UserFeatures(*(t.new_zeros(1, *t.shape[1:]).to(device) for t in (user.categorical_BC, user.numeric_BF)))
    item = items.map(lambda t: t.new_zeros(1, *t.shape[1:]).to(device))
    with computing(precision, device), LiveBytes() as held:
        index_BT = torch.zeros(1, history_length, dtype=torch.int64, device=device)
        number_BT = index_BT.float()
        history = History(index_BT, number_BT, index_BT, number_BT, torch.tensor([history_length], device=device))
        row_BN = torch.zeros(1, candidates, dtype=torch.int64, device=device)
        state = model.encode_user(history, item.take(index_BT), one_user)
        model.score(state, item.take(row_BN))
    return held.peak
