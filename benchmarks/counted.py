"""What a score costs at least: its counted arithmetic, at the rate at which this machine multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.made_up import World
from gesr_core.model.build import Model
from gesr_core.model.inputs import History, UserFeatures

_SIZES: Final = (256, 512, 1024)
_GPU_SIZES: Final = (4096, 8192)


@torch.inference_mode()
def request_flops(world: World, *, history_length: int, candidates: int) -> int:
    """Return the multiplications and additions of the matrix products of one request, as torch counts them.

    Softmax attention is computed as two products here: of a CPU's own operation torch's counter knows nothing.
    """
    model, device = cast(Model, world.model), world.items.vector_RD.device
    row_BT = torch.zeros(1, history_length, dtype=torch.int64, device=device)
    history = History(row_BT, row_BT.float(), row_BT, row_BT.float(), torch.tensor([history_length], device=device))
    categories = sum(vocabulary.columns for vocabulary in world.features.user_categories)
    user = UserFeatures(
        torch.zeros(1, categories, dtype=torch.int64, device=device),
        torch.zeros(1, len(world.features.user_numerics), device=device),
    )
    row_BN = torch.zeros(1, candidates, dtype=torch.int64, device=device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        state = model.encode_user(history, world.items.take(row_BT), user)
        model.score(state, world.items.take(row_BN))
    return int(counter.get_total_flops())


def gemm_peak(dtype: torch.dtype, *, device: torch.device, seconds: float = 0.5) -> float:
    """Return the highest rate, in multiplications and additions per second, of square matrix products of some sizes."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    sizes = _GPU_SIZES if device.type == "cuda" else _SIZES
    best = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
        left @ right
        wait()
        ends_s = time.perf_counter() + seconds / len(sizes)
        while time.perf_counter() < ends_s:
            started_s = time.perf_counter()
            left @ right
            wait()
            best = max(best, 2 * size**3 / (time.perf_counter() - started_s))
    return best
