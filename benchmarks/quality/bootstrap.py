"""Paired bootstrap over users: how far a seed-averaged difference of two cells may be chance. numpy; no JVM.

A resample draws as many users as there are, with replacement, and takes all requests of each; both cells are measured
on the same draws. What differs between seeds is averaged first and shown beside it: an interval says nothing of it.

Legend: R resamples, U units (requests), V users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.quality.measures import Sums

RESAMPLES: Final = 1_000
_AT_ONCE: Final = 100
_SEED: Final = 17


@dataclass(frozen=True)
class Difference:
    """Of two cells' seed-averaged measure: its value and its 95 % interval."""

    value: float
    low: float
    high: float


def resampled(user_U: np.ndarray, cells: Mapping[str, Sequence[Sums]]) -> dict[str, dict[str, np.ndarray]]:
    """Return, per cell and measure, the seed-averaged value of every resample [R]; the draws are the same for all.

    Args:
        user_U: the user of each unit.
        cells: per cell the sums of its seeds.
    """
    users, user_index_U = np.unique(user_U, return_inverse=True)
    rng = np.random.default_rng(_SEED)
    parts: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in cells}
    for _ in range(RESAMPLES // _AT_ONCE):
        draws_RV = rng.multinomial(len(users), np.full(len(users), 1 / len(users)), size=_AT_ONCE)
        draws_RU = draws_RV[:, user_index_U].astype(np.float64)
        for name, seeds in cells.items():
            values = [sums.values(draws_RU) for sums in seeds]
            for measure in values[0]:
                mean_R = np.mean([value[measure] for value in values], axis=0)
                parts[name].setdefault(measure, []).append(mean_R)
    return {name: {m: np.concatenate(arrays) for m, arrays in measures.items()} for name, measures in parts.items()}


def difference(cell: Sequence[float], other: Sequence[float], cell_R: np.ndarray, other_R: np.ndarray) -> Difference:
    """Return the difference of the seeds' means, and the percentiles of it among the resamples."""
    low, high = np.percentile(cell_R - other_R, [2.5, 97.5])
    return Difference(float(np.mean(cell) - np.mean(other)), float(low), float(high))
