"""Triton's kernels against the plain forms: in Triton's interpreter on a CPU, compiled where there is a GPU.

Everywhere they are also compiled for two GPUs ahead of time, which takes none: what the interpreter lets pass may yet
be refused by the compiler.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gesr_core.ops import matching, target_attention
from gesr_core.ops.matching import MatchPlan, match_counts_plain, sort_matches
from tests.models import CONFIGS, random_inputs, random_model, scores

pytest.importorskip("triton")
from triton.runtime.interpreter import InterpretedFunction

HAS_GPU = torch.cuda.is_available()
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """The kernels; in the interpreter where there is no GPU (conftest.py)."""
    module = importlib.import_module("gesr_core.ops.kernels")
    assert isinstance(module.count_matches, InterpretedFunction) != HAS_GPU
    return module


@pytest.fixture
def forced(kernels: ModuleType) -> Iterator[None]:
    """Have the models use the kernels, on whatever device."""
    with (
        mock.patch.object(matching, "use_kernels", return_value=True),
        mock.patch.object(target_attention, "use_kernels", return_value=True),
    ):
        yield


# Pairs of fields of 1, 2 and 3 columns: three shapes, one of them with two pairs.
PLANS = (
    MatchPlan.of([(0, 0), (1, 1), (0, 1)]),
    MatchPlan.of([(0, 0), (1, 2), (0, 1), (2, 1), (1, 1)], [2, 1, 3]),
)


def matches(
    kernels: ModuleType, plan: MatchPlan, lengths: list[int], *, targets: int, cap: int, dtype: torch.dtype, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts by the kernel and by the plain form, of few different ids so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    events, columns = max(lengths), sum(plan.columns)
    there_BT = torch.arange(events) < torch.tensor(lengths).unsqueeze(-1)

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(0, 5, (*shape, columns), generator=generator).to(dtype)

    history_BTM = ids(len(lengths), events).masked_fill(~there_BT.unsqueeze(-1), 0).to(DEVICE)
    candidate_BNM = ids(len(lengths), targets).to(DEVICE)
    narrowing = {"age_s_BT": there_BT.float().to(DEVICE), "action_BT": there_BT.long().to(DEVICE)}
    found = kernels.match_counts(
        sort_matches(history_BTM, plan=plan, **narrowing),
        candidate_BNM,
        groups=plan.groups(),
        places=[plan.places(pair.candidate)[0] for pair in plan.pairs],
        widths=[len(plan.places(pair.candidate)) for pair in plan.pairs],
        cap=cap,
    )
    return found, match_counts_plain(history_BTM, candidate_BNM, plan=plan, cap=cap, **narrowing)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    targets=st.integers(0, 5),
    cap=st.integers(1, 4),
    plan=st.sampled_from(PLANS),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_counts_equal_the_plain_form(
    kernels: ModuleType,
    lengths: list[int],
    targets: int,
    cap: int,
    plan: MatchPlan,
    dtype: torch.dtype,
    seed: int,
) -> None:
    found, plain = matches(kernels, plan, lengths, targets=targets, cap=cap, dtype=dtype, seed=seed)
    assert found.dtype == plain.dtype
    assert torch.equal(found, plain)


def test_counts_of_more_candidates_than_a_block(kernels: ModuleType) -> None:
    found, plain = matches(kernels, PLANS[1], [130, 0, 1], targets=131, cap=15, dtype=torch.int32, seed=1)
    assert torch.equal(found, plain)
    assert int(plain.max()) == 15


def attended(
    attend: Callable[..., torch.Tensor],
    lengths: list[int],
    *,
    targets: int,
    heads: int,
    width: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    padded: float = 0.0,
) -> torch.Tensor:
    """Attention to histories of some lengths; `padded` stands in the values behind their ends."""
    generator = torch.Generator().manual_seed(seed)
    batch, events = len(lengths), max(lengths)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    # As the model has them: heads side by side in memory, and parts of one product.
    q, k, v = (
        part.unflatten(-1, (heads, width)).transpose(1, 2)
        for part in rows(batch, targets, 3 * heads * width).chunk(3, -1)
    )
    history_k, history_v = rows(batch, heads, events, width), rows(batch, heads, events, width)
    length_B = torch.tensor(lengths, device=DEVICE)
    behind_BT = torch.arange(events, device=DEVICE) >= length_B.unsqueeze(-1)
    return attend(
        q,
        k,
        v,
        history_k_BHTK=history_k,
        history_v_BHTK=history_v.masked_fill(behind_BT[:, None, :, None], padded),
        bias_BHT=rows(batch, events, heads).transpose(1, 2),
        own_bias_H=rows(heads),
        normaliser=200.0,
        length_B=length_B,
    )


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    targets=st.integers(0, 5),
    heads=st.integers(1, 3),
    width=st.sampled_from([3, 8, 16, 20]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_attention_equals_the_plain_form(
    kernels: ModuleType, lengths: list[int], targets: int, heads: int, width: int, seed: int
) -> None:
    sizes: dict[str, Any] = {"targets": targets, "heads": heads, "width": width, "seed": seed}
    found = attended(kernels.attend_cached, lengths, **sizes)
    plain = attended(target_attention.attend_cached, lengths, **sizes)
    torch.testing.assert_close(found, plain, rtol=5e-5, atol=1e-6)


def test_attention_over_more_events_and_candidates_than_a_block(kernels: ModuleType) -> None:
    sizes: dict[str, Any] = {"targets": 70, "heads": 2, "width": 32, "seed": 3}
    found = attended(kernels.attend_cached, [130, 64, 1], **sizes)
    torch.testing.assert_close(
        found, attended(target_attention.attend_cached, [130, 64, 1], **sizes), rtol=5e-5, atol=1e-5
    )


def test_attention_stops_at_the_end_of_the_history(kernels: ModuleType) -> None:
    """What stands behind it is never read, not even where it is not zero."""
    sizes: dict[str, Any] = {"targets": 4, "heads": 1, "width": 8, "seed": 4}
    clean = attended(kernels.attend_cached, [5, 70], **sizes)
    assert torch.equal(attended(kernels.attend_cached, [5, 70], **sizes, padded=1e6), clean)


@pytest.mark.parametrize("name", ["gesr", "gesr with cross attention", "gesr of one layer"])
def test_models_score_by_kernels_what_they_score_without(name: str, kernels: ModuleType, forced: None) -> None:
    model = random_model(CONFIGS[name]).float().to(DEVICE)
    inputs = random_inputs([6, 0, 1, 3], candidates=7)
    inputs = to_float(inputs)
    with torch.inference_mode():
        by_kernels = scores(model, inputs)
        with (
            mock.patch.object(matching, "use_kernels", return_value=False),
            mock.patch.object(target_attention, "use_kernels", return_value=False),
        ):
            plain = scores(model, inputs)
    assert float((by_kernels - plain).abs().max()) <= 5e-5 * max(1.0, float(plain.abs().max()))


def to_float(inputs: Any) -> Any:
    from gesr_core.training.data import map_tensors

    return map_tensors(inputs, lambda t: (t.float() if t.is_floating_point() else t).to(DEVICE))


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_a_gpu_at_real_sizes(kernels: ModuleType, dtype: torch.dtype) -> None:
    sizes: dict[str, Any] = {"targets": 1000, "heads": 2, "width": 32, "seed": 5}
    found = attended(kernels.attend_cached, [256, 0, 1, 100], **sizes, dtype=dtype)
    exact = attended(target_attention.attend_cached, [256, 0, 1, 100], **sizes, dtype=torch.float32)
    # The plain form in fp32 is what bf16 is held against: its 8 bits leave about 1 in 100 of the largest.
    bound = 5e-5 if dtype == torch.float32 else 2e-2
    assert float((found.float() - exact).abs().max()) <= bound * float(exact.abs().max())


@gpu
@needs_gpu
def test_counts_on_a_gpu_at_real_sizes(kernels: ModuleType) -> None:
    found, plain = matches(kernels, PLANS[1], [256, 0, 17, 1], targets=1000, cap=15, dtype=torch.int32, seed=6)
    assert torch.equal(found, plain)


AHEAD = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gesr_core.ops import kernels

def build(kernel, types, constants, capability):
    signature = {name: "constexpr" if name in constants else types(name) for name in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
    print(kernel.__name__, capability, len(made.asm["cubin"]), "mma" in made.asm["ptx"])

def of_counts(id_type):
    pointers = dict.fromkeys(["sorted_ids", "candidates"], f"*{id_type}") | dict.fromkeys(["places", "columns"], "*i32")
    pointers["counts"] = "*i64"
    return lambda name: pointers.get(name, "i32")

def of_attention(value_type):
    pointers = {name: f"*{value_type}" for name in ("q", "k", "v", "keys", "values", "bias", "own_bias", "out")}
    others = {"lengths": "*i64", "scale": "fp32", "normaliser": "fp32"}
    return lambda name: pointers.get(name) or others.get(name, "i32")

for capability in (80, 90):
    for id_type in ("i32", "i64"):
        build(kernels.count_matches, of_counts(id_type), {"WIDTH": 3, "STEPS": 9, "BLOCK_N": 64}, capability)
    for value_type in ("fp32", "bf16"):
        build(kernels.attend_targets, of_attention(value_type), kernels.attention_blocks(32), capability)
"""


@pytest.mark.slow
def test_the_compiler_takes_the_kernels_for_two_gpus_without_having_one() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", AHEAD], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    built = [line.split() for line in done.stdout.splitlines()]
    assert len(built) == 8
    assert all(int(size) > 1000 for _, _, size, _ in built)
    # bf16 goes over tensor cores.
    assert [mma for name, _, _, mma in built if name == "attend_targets"][1::2] == ["True", "True"]
