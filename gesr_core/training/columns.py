"""Arrow columns as numbers: texts, places in a list of values, lists, ids that compare across columns. No JVM.

Legend: R rows, M columns of the match fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor


@dataclass(frozen=True)
class ListValues:
    """Values of a column of R lists: the list and the place that each of them has, at most `columns` a list."""

    row: np.ndarray
    place: np.ndarray
    values: pa.Array
    rows: int
    columns: int

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """Return the values' numbers as [R, columns], 0 after a list's end."""
        spread = np.zeros((self.rows, self.columns), dtype=np.int64)
        spread[self.row, self.place] = numbers
        return spread


def first_values(column: pa.Array | pa.ChunkedArray, *, max_values: int) -> ListValues:
    """Return the distinct values of each list, at most the first `max_values` in the order of their texts.

    Nulls in a list, a null list and an empty one are nothing. No loop over rows.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    values = array.flatten()
    coded = pc.dictionary_encode(text(values))
    # A code in the order of the texts, for the order in which they were met.
    in_order = np.empty(len(coded.dictionary), dtype=np.int64)
    in_order[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(coded.dictionary))
    known = coded.is_valid().to_numpy(zero_copy_only=False)
    code = in_order[coded.indices.filter(coded.is_valid()).to_numpy()]
    row = np.repeat(np.arange(len(array)), lengths)[known]
    width = len(coded.dictionary) + 1
    distinct, first = np.unique(row * width + code, return_index=True)
    row = distinct // width
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < max_values
    found = values.take(pa.array(np.flatnonzero(known)[first][kept]))
    return ListValues(row[kept], place[kept], found, len(array), max_values)


def match_ids(items: pa.Table, fields: Sequence[str], *, lists: Mapping[str, int]) -> Tensor:
    """Return match_RM (int32): ids that are equal exactly where the values are, over all fields together; null is 0.

    A field has one column; a field of `lists` as many as that says, for its `first_values`.
    """
    found = {name: first_values(items.column(name), max_values=width) for name, width in lists.items()}
    columns = [found[name].values if name in found else items.column(name).combine_chunks() for name in fields]
    if len({column.type for column in columns}) > 1:
        columns = [text(column) for column in columns]
    if not columns:
        return torch.zeros(items.num_rows, 0, dtype=torch.int32)
    # Sorted, so that ids depend on the values alone and not on the order of rows.
    values = pc.unique(pa.chunked_array(columns)).drop_null().sort()
    ids = [places(column, values) + 1 for column in columns]
    wide = [
        found[name].spread(number) if name in found else number[:, None]
        for name, number in zip(fields, ids, strict=True)
    ]
    return torch.from_numpy(np.concatenate(wide, axis=1)).to(torch.int32)


def transformed(column: pa.Array | pa.ChunkedArray, transform: str) -> np.ndarray:
    """Return a numeric column as float64 after `transform`, NaN where it is null or not finite."""
    numbers = pc.fill_null(pc.cast(column, pa.float64()), float("nan")).to_numpy(zero_copy_only=False)
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    # log1p keeps the sign, so that a negative number is not lost.
    return np.sign(finite) * np.log1p(np.abs(finite)) if transform == "log1p" else finite


def places(column: pa.Array | pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    """Return each value's place in `values`, -1 for null and for values that are not there."""
    found = pc.fill_null(pc.index_in(column, value_set=values, skip_nulls=True), -1)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return a column's values as texts; null stays null."""
    return column if pa.types.is_string(column.type) else pc.cast(column, pa.string())
