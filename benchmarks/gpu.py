"""`python -m benchmarks.gpu`: whole gesr on one GPU, Arrow in to Arrow out and the model alone, in every form beside
fp32; and each kernel's share of what bounds it. Progress to stderr, one JSON line to stdout.

`--device cpu` runs the same at a size of your choice where there is no GPU, to see that it runs: without kernels, and
no goal is judged.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from benchmarks.counted import gemm_peak, request_flops
from benchmarks.gpu_kernels import Sizes, measured
from benchmarks.line import RESULTS, emit, goal, goal_in_words, machine, versions
from benchmarks.made_up import REQUEST_TIME_S, WHOLE_GESR, World, make_requests, make_world, settings_for
from gesr_core.config import PROJECT_ROOT
from gesr_core.runtime.collate import decode
from gesr_core.runtime.device import choose_device
from gesr_core.runtime.forms import COMPILED, EXACT, PRECISIONS, Form, forms_of, logits_of, lowered, lowered_items
from gesr_core.runtime.plan import plan_micro_batches
from gesr_core.runtime.scorer import Scorer, is_broken_device
from gesr_core.runtime.trial import compare

log = logging.getLogger("benchmarks.gpu")

_PAIRS_PER_S: Final = 1e8
_KERNEL_SHARES: Final = {"target_attention": 0.5, "hard_matching": 0.8}
_BATCH_PAIRS: Final = (1 << 16, 1 << 18, 1 << 20)
Row = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Measure every form, then every kernel, and report."""
    args = _parse(argv)
    device = choose_device(args.device)
    is_gpu = device.type == "cuda"
    # On a CPU, where torch's counter sees every product.
    on_cpu = make_world("gesr", *WHOLE_GESR, max_history=args.history, items=args.items, device=torch.device("cpu"))
    flops = request_flops(on_cpu, history_length=args.history, candidates=args.candidates)
    world = make_world("gesr", *WHOLE_GESR, max_history=args.history, items=args.items, device=device)
    batch = make_requests(
        world, lengths=np.full(args.requests, args.history), counts=np.full(args.requests, args.candidates)
    )
    peaks = {str(d).removeprefix("torch."): gemm_peak(d, device=device) for d in (torch.float32, torch.bfloat16)}
    rows: list[Row] = []
    exact: list[Row] | None = None
    for form in forms_of("auto", "auto"):
        # What the others are compared with is always measured.
        if form == EXACT or (form.precision in args.precisions and form.compiled in args.compile):
            row, score_rows = _form(world, batch, form, exact=exact, device=device, args=args)
            exact = exact or score_rows
            rows.append(row)
            log.info(_in_words(row))
    sizes = Sizes(max(1, (1 << 20) // args.candidates), args.history, args.candidates)
    kernels = measured(sizes, device=device) if is_gpu else []
    for kernel in kernels:
        share, dtype = kernel["share"], kernel["dtype"]
        log.info("%s, %s: %.0f%% of what %s bounds", kernel["kernel"], dtype, 100 * share, kernel["bound"])
    goals = _goals(rows, kernels, judged=is_gpu)
    for found in goals:
        print(goal_in_words(found), file=sys.stderr)
    line = {
        "benchmark": "gpu",
        "machine": {**machine(), "device": torch.cuda.get_device_name(device) if is_gpu else "cpu"},
        "versions": versions(("torch", "numpy", "pyarrow")),
        "settings": {
            "model": "gesr", "overrides": list(WHOLE_GESR), "history": args.history, "candidates": args.candidates,
            "requests": args.requests, "items": args.items, "repeats": args.repeats,
            "batch_pairs_tried": list(_BATCH_PAIRS), "flops_per_pair": flops / args.candidates,
            "gemm_peak_flops_per_s": peaks,
        },
        "rows": rows,
        "kernels": kernels,
        "max_score_difference": max((row.get("max_score_difference", 0.0) for row in rows), default=None),
        "goals": goals,
    }  # fmt: skip
    emit(line, device="gpu", save=args.save)


def _form(
    world: World,
    batch: pa.RecordBatch,
    form: Form,
    *,
    exact: list[Row] | None,
    device: torch.device,
    args: argparse.Namespace,
) -> tuple[Row, list[Row] | None]:
    """Measure one form; what cannot be run here says why. Return also its score rows."""
    row: Row = {"form": str(form), "precision": form.precision, "compiled": form.compiled}
    model, items = lowered(world.model, form.precision), lowered_items(world.items, form.precision)
    settings = replace(
        settings_for(world, candidates=args.candidates),
        batch_bytes=None,
        precision=form.precision,
        compiled=form.compiled,
    )
    # Else what was compiled before counts towards the most that torch compiles of one function.
    torch.compiler.reset()
    try:
        logits = logits_of(model, form, device=device)
        scorers = {
            size: Scorer(
                model,
                items=items,
                index=world.index,
                encode_users=world.features.encode_users,
                actions=world.features.actions,
                settings=replace(settings, batch_pairs=size),
                device=device,
                logits=logits,
            )
            for size in _BATCH_PAIRS
            if size <= max(_BATCH_PAIRS[0], _pairs(args))
        }
        # The first pass compiles and grows the caches.
        tried = {size: min(_scored(one, batch)[0] for _ in range(2)) for size, one in scorers.items()}
        best = min(tried, key=tried.__getitem__)
        seconds = [_scored(scorers[best], batch)[0] for _ in range(args.repeats)]
        score_rows = [found for rows in _scored(scorers[best], batch)[1] for found in rows.to_pylist()]
        alone_s = _model_alone(scorers[best], batch, repeats=args.repeats)
    # Whatever a compiler or a device that lacks something has to say.
    except Exception as err:
        if is_broken_device(err):
            raise
        return {**row, "failed": f"{type(err).__name__}: {err}".splitlines()[0][:300]}, None
    difference, overlap = compare(exact or score_rows, score_rows, top_k=settings.top_k)
    return {
        **row, "batch_pairs": best, "seconds": [round(s, 4) for s in seconds],
        "pairs_per_s": _pairs(args) / statistics.median(seconds),
        "model_alone_pairs_per_s": _pairs(args) / alone_s,
        "max_score_difference": difference, "overlap": overlap,
    }, score_rows  # fmt: skip


def _pairs(args: argparse.Namespace) -> int:
    return args.requests * args.candidates


def _scored(scorer: Scorer, batch: pa.RecordBatch) -> tuple[float, list[pa.RecordBatch]]:
    """Score the requests, Arrow in to Arrow out; return the seconds and the score rows."""
    started_s = time.perf_counter()
    scored = list(scorer.score(iter([batch])))
    return time.perf_counter() - started_s, scored


def _model_alone(scorer: Scorer, batch: pa.RecordBatch, *, repeats: int) -> float:
    """Return the median seconds of all micro-batches of requests that are on the device already."""
    jagged = decode(
        batch,
        index=scorer.index,
        encode_users=scorer.encode_users,
        actions=scorer.actions,
        request_time_s=REQUEST_TIME_S,
    )
    plan = plan_micro_batches(jagged.history_length_B, jagged.count_B, settings=scorer.settings)
    jagged = jagged.to(scorer.device)
    wait: Callable[[], object] = torch.cuda.synchronize if scorer.device.type == "cuda" else lambda: None
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + repeats):
            wait()
            started_s = time.perf_counter()
            for micro_batch in plan:
                scorer.logits(jagged, micro_batch)
            wait()
            seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds[1:])


def _goals(rows: Sequence[Row], kernels: Sequence[Row], *, judged: bool) -> list[Row]:
    fastest = max((row["pairs_per_s"] for row in rows if "pairs_per_s" in row), default=None)
    found = [
        goal(
            "pairs per second, Arrow in to Arrow out, the fastest form", goal=_PAIRS_PER_S, better="higher",
            value=fastest if judged else None,
        )
    ]  # fmt: skip
    for name, wanted in _KERNEL_SHARES.items():
        shares = [kernel["share"] for kernel in kernels if kernel["kernel"] == name]
        found.append(
            goal(f"{name}'s share of its bound, worst", goal=wanted, better="higher", value=min(shares, default=None))
        )
    return found


def _in_words(row: Row) -> str:
    if "failed" in row:
        return f"{row['form']}: cannot be run here: {row['failed']}"
    return (
        f"{row['form']}: {row['pairs_per_s']:,.0f} pairs/s, the model alone {row['model_alone_pairs_per_s']:,.0f}, "
        f"micro-batches of {row['batch_pairs']:,} pairs, {row['overlap']:.2%} of the best K as in fp32"
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs (default: cuda)")
    parser.add_argument("--history", type=int, default=256, help="events of a history (default: 256)")
    parser.add_argument("--candidates", type=int, default=1_000, help="candidates of a request (default: 1,000)")
    parser.add_argument("--requests", type=int, default=4_096, help="requests of a pass (default: 4,096)")
    parser.add_argument("--items", type=int, default=100_000, help="items of the catalogue (default: 100,000)")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each form; medians count (default: 5)")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--compile", nargs="+", default=COMPILED, choices=COMPILED)
    parser.add_argument("--save", action="store_true", help=f"keep the line in {RESULTS.relative_to(PROJECT_ROOT)}")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU: --device cpu shows that the benchmark runs")
    if args.save and args.device != "cuda":
        parser.error("--save keeps what the documents quote: figures of a GPU")
    return args


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1:])
