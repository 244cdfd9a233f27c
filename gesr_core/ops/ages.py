"""Ages in seconds to log-spaced buckets. No parameters; runs anywhere torch does.

Integer edges, because a float logarithm may fall on either side of an edge in a vectorised and in a scalar loop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The finest and the coarsest age that are told apart: a minute, and four hundred days (so that a year is inside).
MIN_AGE_S = 60
MAX_AGE_S = 400 * 86_400


def log_edges_s(buckets: int) -> list[int]:
    """Return the `buckets` - 1 edges, in whole seconds, that cut ages into log-spaced buckets.

    Raises:
        ValueError: `buckets` is below 3.
    """
    if buckets < 3:
        raise ValueError(f"{buckets} age buckets: at least 3 are needed")
    step = math.log(MAX_AGE_S / MIN_AGE_S) / (buckets - 2)
    return [round(MIN_AGE_S * math.exp(step * i)) for i in range(buckets - 1)]


def bucket_ages(age_s: Tensor, edges_s: Tensor) -> Tensor:
    """Return each age's bucket, 0 (below the first edge, also when negative) to len(edges)."""
    return torch.bucketize(age_s, edges_s.to(age_s.dtype), right=True)
