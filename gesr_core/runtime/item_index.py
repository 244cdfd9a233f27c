"""Item id -> row of the item table, by a search over sorted 64-bit keys. Runs in a worker or anywhere; no JVM.

A BIGINT id is its own key. A STRING id's key is Spark's xxhash64 of it; entries of one key stand side by side, sorted
by value, and a hit counts only where the values are equal, so colliding hashes are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemIndex:
    """Sorted keys of R items; the place of a key is the item's row.

    `key_R` is int64, ascending; `value_R` holds the ids of STRING items in the same order, None for BIGINT ids.
    `longest_run` is the largest number of items that share one key (1 without collisions).
    """

    key_R: Tensor
    value_R: pa.Array | None = None
    longest_run: int = 1

    @staticmethod
    def build(keys: Tensor, values: pa.Array | None = None) -> ItemIndex:
        """Index items that are sorted by (key, value) already.

        Raises:
            ValueError: the keys are not ascending, or BIGINT ids are not unique.
        """
        if len(keys) > 1 and bool((keys[1:] < keys[:-1]).any()):
            raise ValueError("item keys are not sorted")
        runs = int(torch.unique_consecutive(keys, return_counts=True)[1].max()) if len(keys) else 1
        if values is None and runs > 1:
            raise ValueError("item ids are not unique")
        return ItemIndex(keys, values, runs)

    def to(self, device: torch.device) -> ItemIndex:
        """Return the index with its keys on `device`, where BIGINT ids are then searched for.

        STRING ids stay where their values are, to be compared.
        """
        return self if self.value_R is not None else ItemIndex(self.key_R.to(device), None, self.longest_run)

    def rows(self, keys: Tensor, values: pa.Array | None = None) -> Tensor:
        """Return the row of each id, -1 where the table lacks it, on the device of the index.

        Args:
            keys: int64 keys, any shape for BIGINT ids, one dimension for STRING ids.
            values: the ids themselves, for STRING items.
        """
        keys = keys.to(self.key_R.device)
        if not len(self.key_R):
            return torch.full_like(keys, -1)
        first = torch.searchsorted(self.key_R, keys).clamp_max_(len(self.key_R) - 1)
        found = torch.where(self.key_R[first] == keys, first, -1)
        if self.value_R is None:
            return found
        return self._resolve_by_value(keys.numpy(), found.numpy(), values)

    def _resolve_by_value(self, keys: np.ndarray, found: np.ndarray, values: pa.Array | None) -> Tensor:
        if values is None or self.value_R is None:
            raise ValueError("STRING item ids need their values, not only their keys")
        result = np.full_like(found, -1)
        for step in range(self.longest_run):
            at = np.minimum(found + step, len(self.key_R) - 1)
            possible = (found >= 0) & (self.key_R.numpy()[at] == keys)
            if not possible.any():
                break
            equal = pc.equal(self.value_R.take(pa.array(np.where(possible, at, 0))), values)
            hit = possible & pc.fill_null(equal, False).to_numpy(zero_copy_only=False)
            result = np.where(hit & (result < 0), at, result)
        return torch.from_numpy(result)
