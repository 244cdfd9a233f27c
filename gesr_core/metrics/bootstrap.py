"""Poisson bootstrap over users: how often each replicate draws each user, and the interval of what it gives. numpy.

A replicate draws every user a Poisson(1) number of times. The number is a hash of the user, the seed and the replicate,
so that every run, every partition and every publication draws the same, and nothing has to be kept or sent: sums per
replicate are all that the driver needs (Chamandy, Muralidharan, Najmi, Naidu: Estimating Uncertainty for Massive Data
Streams, 2012; Hanley, MacGibbon: Creating non-parametric bootstrap samples using Poisson frequencies, 2006).

Legend: U users, R replicates, and the data themselves before them: 1 + replicates.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

# Chances of at most 0, 1, 2, ... draws; beyond 17 there is less left than a double tells from 1.
_POISSON: Final = np.cumsum([math.exp(-1) / math.factorial(draws) for draws in range(18)])
_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_LEVEL: Final = (2.5, 97.5)


def draws(hash_U: np.ndarray, *, replicates: int) -> np.ndarray:
    """Return how often each user is drawn, [U, R] in float64; the first column, the data themselves, is all 1.

    Args:
        hash_U: a 64-bit hash of user and seed.
        replicates: how many to draw.
    """
    numbers_R = np.arange(1, replicates + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = hash_U.astype(np.int64).view(np.uint64)[:, None] + _GOLDEN * numbers_R
        # splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    uniform = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    drawn = np.searchsorted(_POISSON, uniform, side="right").astype(np.float64)
    return np.concatenate([np.ones((len(hash_U), 1)), drawn], axis=1)


def interval(value_R: np.ndarray, *, users: int) -> tuple[float, float] | tuple[None, None]:
    """Return the 2.5th and 97.5th percentile of the replicates; none of fewer than two users.

    A replicate that drew nobody who counts has no value (not finite), and is left out.

    Args:
        value_R: the value of the data, then that of each replicate.
        users: how many users the value is of.
    """
    known = value_R[1:][np.isfinite(value_R[1:])]
    if users < 2 or not len(known):
        return None, None
    low, high = np.percentile(known, _LEVEL)
    return float(low), float(high)
