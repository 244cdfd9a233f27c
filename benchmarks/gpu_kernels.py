"""How near the Triton kernels come to what bounds them on the GPU at hand: `benchmarks.gpu` prints it.

A kernel's work is counted by kind (tensor cores, fp32, special functions, integers, memory); each kind takes its count
over the rate of the hardware; the largest of these times is the bound, and the share is the bound over the measured
time. Counting leaves out loops and what lies in caches, so a share of 1 is out of reach.

Legend: B requests, T history positions, N candidates, H heads, K width per head, D = H * K, P pairs of match fields.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from benchmarks.counted import gemm_peak
from gesr_core.ops.matching import MatchPlan, sort_matches

# What a multiprocessor finishes in a clock (compute capability 9.0, CUDA's programming guide, arithmetic throughput):
# fp32 multiply-adds count twice, special functions are exp2 and 1/x.
_FP32_A_CLOCK, _SPECIAL_A_CLOCK, _INTEGER_A_CLOCK = 256, 16, 64
_COPIED_BYTES: Final = 1 << 30
# Of a weight: the bias is added, the exponent scaled, one added to exp, one product with 1/x, one with the score; of
# these exp2 and 1/x are special functions.
_FP32_A_WEIGHT, _SPECIAL_A_WEIGHT = 5, 2
# Of a step of a search: the end of the jump, whether it is inside, the load's address, the comparison, the choice.
_INTEGER_A_STEP: Final = 5
KINDS: Final = ("tensor", "fp32", "special", "integer", "bytes")


@dataclass(frozen=True)
class Sizes:
    """The shape of a micro-batch."""

    requests: int
    history: int
    candidates: int
    heads: int = 2
    head_width: int = 32
    pairs: int = 5


def attention_counts(sizes: Sizes, *, dtype: torch.dtype) -> dict[str, float]:
    """Count what attention of candidates to cached histories takes, in one layer.

    Two products with a history's keys and values, which tensor cores do in bfloat16 and fp32 units in fp32; each
    history is read once per request from memory, however often from caches.
    """
    width = sizes.heads * sizes.head_width
    rows = sizes.requests * sizes.candidates
    products = 4.0 * rows * sizes.history * width
    weights = float(rows * sizes.heads * sizes.history)
    on_tensor_cores = dtype != torch.float32
    read = dtype.itemsize * (4 * rows * width + 2 * sizes.requests * sizes.history * width)
    return {
        "tensor": products if on_tensor_cores else 0.0,
        "fp32": _FP32_A_WEIGHT * weights + (0.0 if on_tensor_cores else products),
        "special": _SPECIAL_A_WEIGHT * weights,
        "integer": 0.0,
        "bytes": float(read),
    }


def matching_counts(sizes: Sizes) -> dict[str, float]:
    """Count what the match counts of candidates take: two binary searches in a request's sorted ids for each pair.

    A candidate's ids (8 bytes a column, two columns) are read, its counts (8 bytes a pair) written.
    """
    rows = sizes.requests * sizes.candidates
    steps = 2.0 * rows * sizes.pairs * sizes.history.bit_length()
    moved = 8 * (rows * (2 + sizes.pairs) + sizes.requests * sizes.pairs * sizes.history)
    return {"tensor": 0.0, "fp32": 0.0, "special": 0.0, "integer": _INTEGER_A_STEP * steps, "bytes": float(moved)}


def hardware_rates(device: torch.device) -> dict[str, float]:
    """Return how much of each kind the GPU does in a second.

    Tensor cores and memory as measured (the best of bfloat16 products, a copy of a gigabyte), the others by the number
    of multiprocessors and their highest clock.
    """
    from triton.testing import do_bench

    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = do_bench(lambda: target.copy_(source), return_mode="median") / 1e3
    clocks = torch.cuda.get_device_properties(device).multi_processor_count * _highest_clock()
    return {
        "tensor": gemm_peak(torch.bfloat16, device=device),
        "fp32": _FP32_A_CLOCK * clocks,
        "special": _SPECIAL_A_CLOCK * clocks,
        "integer": _INTEGER_A_CLOCK * clocks,
        "bytes": 2 * _COPIED_BYTES / copy_s,
    }


def bound(counts: Mapping[str, float], rates: Mapping[str, float]) -> tuple[str, float]:
    """Return the kind that takes longest, and its seconds."""
    kind = max(KINDS, key=lambda one: counts[one] / rates[one])
    return kind, counts[kind] / rates[kind]


def measured(sizes: Sizes, *, device: torch.device) -> list[dict[str, Any]]:
    """Return for each kernel its time, its bound, and its share of it."""
    from triton.testing import do_bench

    rates = hardware_rates(device)
    rows = []
    for name, dtype, counts, run in _kernels(sizes, device=device):
        kind, least_s = bound(counts, rates)
        seconds = do_bench(run, return_mode="median") / 1e3
        rows.append(
            {
                "kernel": name, "dtype": str(dtype).removeprefix("torch."), "seconds": seconds, "bound": kind,
                "bound_s": least_s, "share": least_s / seconds, "counts": counts, "rates": rates,
            }
        )  # fmt: skip
    return rows


def _kernels(
    sizes: Sizes, *, device: torch.device
) -> list[tuple[str, torch.dtype, dict[str, float], Callable[[], object]]]:
    from gesr_core.ops import kernels

    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    found: list[tuple[str, torch.dtype, dict[str, float], Callable[[], object]]] = []
    of_rows = (sizes.requests, sizes.heads, sizes.candidates, sizes.head_width)
    of_history = (sizes.requests, sizes.heads, sizes.history, sizes.head_width)
    length_B = torch.full((sizes.requests,), sizes.history, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (random(*of_rows, dtype=dtype) for _ in range(3))
        keys, values = (random(*of_history, dtype=dtype) for _ in range(2))
        given = {
            "history_k_BHTK": keys, "history_v_BHTK": values, "bias_BHT": random(*of_history[:3], dtype=dtype),
            "own_bias_H": random(sizes.heads, dtype=dtype), "normaliser": float(sizes.history), "length_B": length_B,
        }  # fmt: skip

        def attend(q: Any = q, k: Any = k, v: Any = v, given: Any = given) -> object:
            return kernels.attend_cached(q, k, v, **given)

        found.append(("target_attention", dtype, attention_counts(sizes, dtype=dtype), attend))
    found.append(("hard_matching", torch.int64, matching_counts(sizes), _counting(sizes, device, generator)))
    return found


def _counting(sizes: Sizes, device: torch.device, generator: torch.Generator) -> Callable[[], object]:
    """Return the launch of the matching kernel alone: on the host `match_counts` makes small tensors around it."""
    import triton

    from gesr_core.ops import kernels

    def ids(rows: int) -> torch.Tensor:
        return torch.randint(1, 50_000, (sizes.requests, rows, 2), generator=generator, device=device)

    plan = MatchPlan.of([(number % 2, number % 2) for number in range(sizes.pairs)])
    zeros_BT = torch.zeros(sizes.requests, sizes.history, dtype=torch.int64, device=device)
    [sorted_BGL] = sort_matches(ids(sizes.history), plan=plan, age_s_BT=zeros_BT.float(), action_BT=zeros_BT)
    candidate_BNM = ids(sizes.candidates)
    counts_BNP = candidate_BNM.new_zeros(sizes.requests, sizes.candidates, sizes.pairs)
    places, columns = (
        torch.tensor(numbers, dtype=torch.int32, device=device)
        for numbers in ([plan.places(pair.candidate)[0] for pair in plan.pairs], list(range(sizes.pairs)))
    )
    block = kernels._BLOCK_N
    grid = (sizes.requests * sizes.pairs, triton.cdiv(sizes.candidates, block))

    def count() -> object:
        return kernels.count_matches[grid](
            sorted_BGL, candidate_BNM, counts_BNP, places, columns,
            sizes.pairs, sizes.history, sizes.candidates, 2, sizes.pairs, 15,
            WIDTH=1, STEPS=sizes.history.bit_length(), BLOCK_N=block,
        )  # fmt: skip

    return count


def _highest_clock() -> float:
    """Return the highest clock of a multiprocessor, in Hz, as the driver states it."""
    asked = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return 1e6 * float(said.splitlines()[0])
