"""Small test sets that can be checked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from benchmarks.quality.prepared import TestSet


def a_test_set(
    pairs: Sequence[tuple[int, int, int]],
    truth: Sequence[tuple[int, int]],
    *,
    weight: Sequence[float] | np.ndarray | None = None,
) -> TestSet:
    """A test set of one task from (request, item, label) and (request, item) of all positives; users are requests."""
    request, item, label = np.array(pairs).T
    truth_request, truth_item = np.array(truth).T
    unit_U = np.unique(np.concatenate([request, truth_request]))
    return TestSet(
        ds="2001-01-01",
        tasks=("bought",),
        unit_U=unit_U,
        user_U=unit_U,
        time_us_U=np.zeros(len(unit_U), dtype=np.int64),
        unit_P=np.searchsorted(unit_U, request),
        item_P=item,
        label_PS=label.reshape(-1, 1),
        weight_P=np.ones(len(item)) if weight is None else np.array(weight),
        truth_unit=np.searchsorted(unit_U, truth_request),
        truth_item=truth_item,
        truth_label_S=np.ones((len(truth_item), 1)),
        rows=pa.table({}),
    )
