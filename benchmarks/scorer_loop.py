"""`python -m benchmarks.scorer_loop`: the scorer without Spark, Arrow in to Arrow out, against what its counted
arithmetic takes at the rate at which one core multiplies matrices. Progress to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from benchmarks.counted import gemm_peak, request_flops
from benchmarks.line import RESULTS, emit, goal, goal_in_words, machine, versions
from benchmarks.made_up import WHOLE_GESR, World, make_requests, make_world, settings_for
from gesr_core.config import PROJECT_ROOT, load_config
from gesr_core.names import Col
from gesr_core.runtime.device import CPU_BATCH_BYTES
from gesr_core.runtime.forms import Compiled, Form, Logits, Precision, logits_of, lowered
from gesr_core.runtime.plan import ScorerSettings
from gesr_core.runtime.scorer import Scorer
from gesr_core.runtime.trial import compare

log = logging.getLogger("benchmarks.scorer_loop")

_HISTORIES: Final = (64, 200, 256)
_CANDIDATES: Final = (1, 16, 256, 500, 1_000)
_BATCH_PAIRS: Final = (1_024, 2_048, 4_096, 8_192)
_OVER_COUNTED: Final = 1.33
_BF16_OVER_FP32: Final = 2.5
# Fewer pairs than this a request, and what is done once per request is most of it.
_GOAL_FROM_CANDIDATES: Final = 256
_RAGGED: Final = 600
# Events and candidates of the requests that every form is measured with.
_FORMS_AT: Final = (200, 500)
_STAGES: Final = ("decode_s", "compute_s", "encode_s")
_SUMMED: Final = (*_STAGES, "pairs", "padded_pairs", "events", "padded_events")
_CPU: Final = torch.device("cpu")
_COMPILED: Final[tuple[Compiled, ...]] = ("off", "on")


def main(argv: Sequence[str]) -> None:
    """Measure every size, and report."""
    args = _parse(argv)
    torch.set_num_threads(1)
    rows = []
    for history_length in args.histories:
        world = make_world("gesr", *WHOLE_GESR, max_history=history_length, device=_CPU)
        for candidates in args.candidates:
            rows.append(_row(world, history_length=history_length, candidates=candidates, args=args))
            log.info(_in_words(rows[-1]))
    ragged = _ragged(args)
    log.info(_in_words(ragged))
    asked = _FORMS_AT[0] in args.histories and _FORMS_AT[1] in args.candidates
    forms = _forms(args) if asked else []
    large = [row for row in rows if row["candidates"] >= _GOAL_FROM_CANDIDATES]
    goals = [
        goal(
            f"time over that of the counted operations, worst from {_GOAL_FROM_CANDIDATES} candidates on",
            goal=_OVER_COUNTED, value=max((row["over_counted"] for row in large), default=None), better="lower",
        ),
        goal(
            f"bf16 over fp32, worst from {_GOAL_FROM_CANDIDATES} candidates on", goal=_BF16_OVER_FP32, better="higher",
            value=min((row["bf16"]["over_fp32"] for row in large if row["bf16"]), default=None),
            note=_overlap_in_words(rows),
        ),
    ]  # fmt: skip
    for found in goals:
        print(goal_in_words(found), file=sys.stderr)
    line = {
        "benchmark": "scorer_loop",
        "machine": machine(),
        "versions": versions(("torch", "numpy", "pyarrow")),
        "settings": {
            "model": "gesr", "overrides": list(WHOLE_GESR), "threads": 1, "repeats": args.repeats,
            "seconds": args.seconds, "precision": "fp32, and bf16 beside it", "batch_pairs_tried": list(_BATCH_PAIRS),
            "batch_bytes": CPU_BATCH_BYTES,
        },
        "rows": [*rows, ragged],
        "forms": forms,
        # What fp32 is exact against stands in the tests; here, of bf16 against fp32.
        "max_score_difference": max((r["bf16"]["max_score_difference"] for r in rows if r["bf16"]), default=None),
        "goals": goals,
    }  # fmt: skip
    emit(line, device="cpu", save=args.save)


def _row(world: World, *, history_length: int, candidates: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure requests of one size, in micro-batches of the size that suits them best."""
    flops = request_flops(world, history_length=history_length, candidates=candidates)
    peak = gemm_peak(torch.float32, device=_CPU)
    users = int(np.clip(args.seconds * 0.5 * peak / flops, 4, 20_000))
    batch = make_requests(world, lengths=np.full(users, history_length), counts=np.full(users, candidates))
    plain = settings_for(world, candidates=candidates)
    # The first run of all also warms up and counts bytes.
    _run(world, batch.slice(0, max(1, users // 8)), plain)
    tried = {size: _run(world, batch, replace(plain, batch_pairs=size)).elapsed_s for size in _BATCH_PAIRS}
    best = min(tried, key=tried.__getitem__)
    low_world = replace(world, model=lowered(world.model, "bf16"), counted_bytes={})
    low_plain = replace(plain, precision="bf16")
    low_sizes = _BATCH_PAIRS if _multiplies_bf16() else ()
    low_tried = {size: _run(low_world, batch, replace(low_plain, batch_pairs=size)).elapsed_s for size in low_sizes}
    runs, low = [], []
    for _ in range(args.repeats):
        runs.append(_run(world, batch, replace(plain, batch_pairs=best)))
        if low_tried:
            low_best = min(low_tried, key=low_tried.__getitem__)
            low.append(_run(low_world, batch, replace(low_plain, batch_pairs=low_best)))
    # The core's rate drifts with what else the machine does: it is taken before and after.
    peak = max(peak, gemm_peak(torch.float32, device=_CPU))
    median_s = statistics.median(run.elapsed_s for run in runs)
    return {
        "history": history_length,
        "candidates": candidates,
        "batch_pairs": best,
        "flops_per_pair": flops / candidates,
        "gemm_peak_flops_per_s": peak,
        "over_counted": median_s * peak / (users * flops),
        "bf16": _beside(low, runs, top_k=plain.top_k, pairs=users * candidates),
        **_facts(runs, requests=users, pairs=users * candidates),
    }


def _ragged(args: argparse.Namespace) -> dict[str, Any]:
    """Measure requests of all lengths, padded to the buckets that the configuration sets: what padding costs."""
    scoring = load_config("local").scoring
    events, most = scoring.history_buckets[-1], scoring.candidate_buckets[-1]
    world = make_world("gesr", *WHOLE_GESR, max_history=events, device=_CPU)
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(2.8, 1.0, _RAGGED), 0, events).astype(np.int64)
    counts = np.clip(rng.normal(400, 80, _RAGGED), 1, most).astype(np.int64)
    batch = make_requests(world, lengths=lengths, counts=counts)
    settings = replace(
        settings_for(world, candidates=most),
        history_buckets=tuple(scoring.history_buckets),
        candidate_buckets=tuple(scoring.candidate_buckets),
    )
    runs = [_run(world, batch, settings) for _ in range(args.repeats)]
    facts = _facts(runs, requests=_RAGGED, pairs=int(counts.sum()))
    return {"history": "ragged", "candidates": "ragged", "batch_pairs": settings.batch_pairs, **facts}


def _forms(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the forms that a CPU has side by side: in which precision, and compiled or not."""
    history_length, candidates = _FORMS_AT
    world = make_world("gesr", *WHOLE_GESR, max_history=history_length, device=_CPU)
    flops = request_flops(world, history_length=history_length, candidates=candidates)
    users = int(np.clip(args.seconds * 0.5 * gemm_peak(torch.float32, device=_CPU) / flops, 4, 20_000))
    batch = make_requests(world, lengths=np.full(users, history_length), counts=np.full(users, candidates))
    plain = settings_for(world, candidates=candidates)
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if _multiplies_bf16() else ("fp32",)
    forms = [Form(precision, compiled) for compiled in _COMPILED for precision in precisions]
    ways: list[Callable[[], Run]] = []
    first_s = []
    for form in forms:
        model = lowered(world.model, form.precision)
        of_form = replace(world, model=model, counted_bytes={})
        logits = logits_of(model, form, device=_CPU)
        settings = replace(plain, precision=form.precision, compiled=form.compiled)
        ways.append(partial(_run, of_form, batch, settings, logits=logits))
        # Compiling happens at the first call.
        first_s.append(ways[-1]().elapsed_s)
    runs = [[way() for way in ways] for _ in range(args.repeats)]
    rows = []
    for form, first, mine in zip(forms, first_s, zip(*runs, strict=True), strict=True):
        exact = [one[0] for one in runs]
        facts = _beside(mine, exact, top_k=plain.top_k, pairs=users * candidates)
        rows.append({"form": str(form), "first_run_s": first, **(facts or {})})
        log.info("%s: %s", form, rows[-1])
    return rows


@dataclass(frozen=True)
class Run:
    """One pass over the requests: how long it took, and the score rows of its windows."""

    elapsed_s: float
    scored: Sequence[pa.RecordBatch]

    @property
    def stats(self) -> list[dict[str, Any]]:
        """The stats of the windows."""
        return [rows.column(Col.STATS)[0].as_py() for rows in self.scored]


def _run(world: World, batch: pa.RecordBatch, settings: ScorerSettings, *, logits: Logits | None = None) -> Run:
    """Score the requests once."""
    scorer = Scorer(
        world.model,
        items=world.items,
        index=world.index,
        encode_users=world.features.encode_users,
        actions=world.features.actions,
        settings=settings,
        device=_CPU,
        counted_bytes=world.counted_bytes,
        logits=logits,
    )
    started_s = time.perf_counter()
    scored = list(scorer.score(iter([batch])))
    return Run(time.perf_counter() - started_s, scored)


def _beside(low: Sequence[Run], exact: Sequence[Run], *, top_k: int, pairs: int) -> dict[str, Any] | None:
    """Return what bf16 came to beside fp32; None where it was not run."""
    if not low:
        return None
    first, other = ([row for rows in runs[0].scored for row in rows.to_pylist()] for runs in (exact, low))
    difference, overlap = compare(first, other, top_k=top_k)
    seconds, exact_s = ([run.elapsed_s for run in runs] for runs in (low, exact))
    return {
        "seconds": [round(s, 4) for s in seconds],
        "pairs_per_s": pairs / statistics.median(seconds),
        "over_fp32": statistics.median(exact_s) / statistics.median(seconds),
        "max_score_difference": difference,
        "overlap": overlap,
    }


def _multiplies_bf16() -> bool:
    """Say whether this CPU multiplies bfloat16 numbers itself."""
    # Not oneDNN's answer, which is also yes where it emulates them.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _overlap_in_words(rows: Sequence[dict[str, Any]]) -> str:
    overlaps = [row["bf16"]["overlap"] for row in rows if row["bf16"]]
    return (
        f"({min(overlaps):.1%} of the best K the same, at least; random weights)"
        if overlaps
        else "(this CPU has no bfloat16)"
    )


def _facts(runs: Sequence[Run], *, requests: int, pairs: int) -> dict[str, Any]:
    seconds = [run.elapsed_s for run in runs]
    total = {name: sum(window[name] for run in runs for window in run.stats) for name in _SUMMED}
    return {
        "requests": requests,
        "seconds": [round(elapsed_s, 4) for elapsed_s in seconds],
        "pairs_per_s": pairs / statistics.median(seconds),
        "shares": {stage: total[stage] / sum(seconds) for stage in _STAGES},
        "padding_of_pairs": 1 - total["pairs"] / total["padded_pairs"],
        "padding_of_events": 1 - total["events"] / total["padded_events"],
    }


def _in_words(row: dict[str, Any]) -> str:
    over = f"{row['over_counted']:.2f} of counted, " if "over_counted" in row else ""
    if row.get("bf16"):
        over += f"bf16 {row['bf16']['over_fp32']:.2f} times as fast with {row['bf16']['overlap']:.1%} of the best K, "
    shares = ", ".join(f"{stage.removesuffix('_s')} {share:.0%}" for stage, share in row["shares"].items())
    return (
        f"history {row['history']}, candidates {row['candidates']}: {row['pairs_per_s']:,.0f} pairs/s, {over}"
        f"batches of {row['batch_pairs']}, {shares}, padding {row['padding_of_pairs']:.0%} of pairs"
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.scorer_loop", description=__doc__)
    parser.add_argument("--histories", type=int, nargs="+", default=_HISTORIES, help="events of a history")
    parser.add_argument("--candidates", type=int, nargs="+", default=_CANDIDATES, help="candidates of a request")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each size; medians count (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a run takes (default: 1)")
    parser.add_argument("--save", action="store_true", help=f"keep the line in {RESULTS.relative_to(PROJECT_ROOT)}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1:])
