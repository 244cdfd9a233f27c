"""When a kernel stands in for the operations of torch that say the same."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def use_kernels(tensor: Tensor) -> bool:
    """Say whether Triton's kernels compute on this tensor: on a GPU, for inference, where Triton is installed."""
    return tensor.is_cuda and not torch.is_grad_enabled() and _has_triton()


@cache
def _has_triton() -> bool:
    # It comes with torch's builds for Linux; elsewhere the plain forms do.
    return find_spec("triton") is not None
