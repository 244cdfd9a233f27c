"""What the GPU's benchmark counts, and that it runs, on a CPU, at toy size."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_kernels import Sizes, attention_counts, bound, matching_counts

SIZES = Sizes(requests=2, history=8, candidates=3, heads=2, head_width=16, pairs=5)


def test_attention_is_counted_by_kind() -> None:
    exact, low = (attention_counts(SIZES, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    # Two products of a multiplication and an addition, over 32 columns and 8 events of 6 candidates.
    assert low["tensor"] == 2 * 2 * 32 * 8 * 6
    assert exact["tensor"] == 0
    # 96 weights: exp and 1/x each.
    assert low["special"] == exact["special"] == 2 * (6 * 2 * 8)
    assert exact["fp32"] - low["fp32"] == low["tensor"]
    # Queries, own keys and values, results; keys and values of two histories.
    assert exact["bytes"] == 2 * low["bytes"] == 4 * (4 * 6 * 32 + 2 * 2 * 8 * 32)


def test_matching_is_bound_by_its_searches() -> None:
    counts = matching_counts(SIZES)
    # Two searches of four steps (8 needs four bits) for five pairs of six candidates.
    assert counts["integer"] == 5 * (2 * 6 * 5 * 4)
    assert bound(counts, dict.fromkeys(counts, 1.0)) == ("integer", counts["integer"])


def test_it_runs_on_a_cpu_and_judges_nothing_there(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--history", "16", "--candidates", "200", "--requests", "4", "--items", "1000", "--repeats", "1"]
    gpu.main(["--device", "cpu", *options, "--precisions", "fp32", "bf16", "fp8", "--compile", "off"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    exact, low, eight = line["rows"]
    assert exact["max_score_difference"] == 0
    assert 0 < low["max_score_difference"] < 1
    assert low["overlap"] > 0.8
    assert "only newer GPUs" in eight["failed"]
    assert [found["met"] for found in line["goals"]] == [None] * 3


def test_figures_of_a_cpu_are_not_kept() -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--device", "cpu", "--save"])
