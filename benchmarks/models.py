"""`python -m benchmarks.models`: what a pair costs with each model, in Spark's stage on one core.

Same width, history and requests; random weights. Progress to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import bisect
import logging
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pyspark.sql import SparkSession

from benchmarks.counted import gemm_peak, request_flops
from benchmarks.line import RESULTS, emit, goal, goal_in_words, machine, versions
from benchmarks.made_up import WHOLE_GESR, World, make_world, settings_for, write_world
from benchmarks.sessions import one_core
from benchmarks.ways import BATCH_PAIRS_TRIED, Timed, best_size, timed, ways_of, write_input
from gesr_core.config import PROJECT_ROOT, TarqConfig

log = logging.getLogger("benchmarks.models")

_MODELS: Final[Mapping[str, tuple[str, ...]]] = {
    "two_tower": ("models.two_tower.width=64",),
    "tarq": (),
    "gesr": WHOLE_GESR,
}
_CANDIDATES: Final = (100, 1_000, 10_000)
_TARQ_OF_GESR, _OVER_COUNTED = 0.35, 1.33
# Pairs and events, as many as fit a run's memory.
_MOST_ROWS: Final = 10_000_000
Row = dict[str, Any]
_CPU: Final = torch.device("cpu")


def main(argv: Sequence[str]) -> None:
    """Measure every model at every number of candidates, and report."""
    args = _parse(argv)
    torch.set_num_threads(1)
    worlds = {
        name: make_world(name, *overrides, max_history=args.history, device=_CPU) for name, overrides in _MODELS.items()
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, one_core("models", Path(folder)) as spark:
        for candidates in sorted(set(args.candidates)):
            rows += _rows(spark, worlds, Path(folder) / str(candidates), candidates, args)
            for row in rows[-len(worlds) :]:
                log.info(_in_words(row))
    cost = {(row["model"], row["candidates"]): row["us_per_pair"] for row in rows}
    ratios = [
        {"candidates": n, **{f"{a}_over_{b}": cost[a, n] / cost[b, n] for a, b in _COMPARED}}
        for n in sorted(set(args.candidates))
    ]
    for found in ratios:
        log.info(
            ", ".join(f"{name} {value:,.2f}" if value < 100 else f"{name} {value:,}" for name, value in found.items())
        )
    even = break_even(args.history)
    codebook = worlds["tarq"].config.models["tarq"]
    codes = codebook.levels * codebook.codes if isinstance(codebook, TarqConfig) else None
    log.info("the %s codes of tarq cost less than its teacher's attention from %s candidates on, by count", codes, even)
    most = max(args.candidates)
    goals = [
        goal(
            f"tarq over gesr at {most:,} candidates", goal=_TARQ_OF_GESR, better="lower",
            value=cost["tarq", most] / cost["gesr", most],
        ),
        goal(
            "gesr over its counted time, worst", goal=_OVER_COUNTED, better="lower",
            value=max(row["over_counted"] for row in rows if row["model"] == "gesr"),
        ),
    ]  # fmt: skip
    for one in goals:
        print(goal_in_words(one), file=sys.stderr)
    line = {
        "benchmark": "models",
        "machine": machine(),
        "versions": versions(("torch", "numpy", "pyarrow", "pyspark")),
        "settings": {
            "models": {name: list(overrides) for name, overrides in _MODELS.items()}, "history": args.history,
            "threads": 1, "master": "local[1]", "precision": "fp32", "repeats": args.repeats, "seconds": args.seconds,
            "batch_pairs_tried": list(BATCH_PAIRS_TRIED),
        },
        "rows": rows,
        "ratios": ratios,
        "levels_times_codes": codes,
        "break_even_candidates": even,
        # One implementation, no rival: what it is exact against stands in the tests.
        "max_score_difference": None,
        "goals": goals,
    }  # fmt: skip
    emit(line, device="cpu", save=args.save)


_COMPARED: Final = (("tarq", "two_tower"), ("gesr", "two_tower"), ("tarq", "gesr"))


def break_even(history_length: int) -> int | None:
    """Return from how many candidates a request on tarq's codes take fewer operations than its teacher's attention.

    The codes attend once per request, whatever the candidates; each of the teacher's candidates attends by itself.
    None: not up to 10,000.
    """
    student, teacher = (
        make_world("tarq", f"models.tarq.serves={served}", max_history=history_length, items=1_000, device=_CPU)
        for served in ("student", "teacher")
    )

    def cheaper(candidates: int) -> bool:
        of_student, of_teacher = (
            request_flops(world, history_length=history_length, candidates=candidates) for world in (student, teacher)
        )
        return of_student < of_teacher

    found = 1 + bisect.bisect_left(range(1, 10_001), True, key=cheaper)
    return found if found <= 10_000 else None


def _rows(
    spark: SparkSession, worlds: Mapping[str, World], folder: Path, candidates: int, args: argparse.Namespace
) -> list[Row]:
    """Measure the models by turns."""
    peak = gemm_peak(torch.float32, device=_CPU)
    flops = {name: _user_flops(world, args.history, candidates) for name, world in worlds.items()}
    ways, best = {}, {}
    for name, world in worlds.items():
        most = int(np.clip(args.seconds * peak / flops[name], 4, _MOST_ROWS // (candidates + args.history)))
        place = folder / name
        given = write_input(world, place, history_length=args.history, candidates=candidates, users=most)
        request = min(candidates, world.config.scoring.max_candidates_per_request)
        task = write_world(world, place, settings=settings_for(world, candidates=request))
        with ways_of(spark, task, given, rivals=()) as found:
            ways[name] = found["stage"]
        best[name] = best_size(ways[name], given, seconds=args.seconds)
    runs: dict[str, list[Timed]] = {name: [] for name in worlds}
    for _ in range(args.repeats):
        for name, way in ways.items():
            size, users = best[name]
            runs[name].append(timed(way, users=users, size=size))
    peak = max(peak, gemm_peak(torch.float32, device=_CPU))
    return [_of_model(name, candidates, runs[name], best[name][0], flops=flops[name], peak=peak) for name in worlds]


def _user_flops(world: World, history_length: int, candidates: int) -> int:
    """Return the counted operations of a user whose candidates are cut into requests as the join does."""
    most = world.config.scoring.max_candidates_per_request
    whole, rest = divmod(candidates, most)
    flops = whole * request_flops(world, history_length=history_length, candidates=most) if whole else 0
    return flops + (request_flops(world, history_length=history_length, candidates=rest) if rest else 0)


def _of_model(name: str, candidates: int, runs: Sequence[Timed], size: int, *, flops: int, peak: float) -> Row:
    s_per_user = statistics.median(run.s_per_user for run in runs)
    return {
        "model": name, "candidates": candidates, "batch_pairs": size, "users": runs[0].users,
        "seconds": [round(run.seconds, 4) for run in runs], "fixed_s": [round(run.fixed_s, 4) for run in runs],
        "us_per_pair": 1e6 * s_per_user / candidates, "pairs_per_s": candidates / s_per_user,
        "flops_per_pair": flops / candidates, "over_counted": s_per_user * peak / flops,
        "gemm_peak_flops_per_s": peak,
    }  # fmt: skip


def _in_words(row: Row) -> str:
    return (
        f"{row['model']}, {row['candidates']:,} candidates: {row['us_per_pair']:.3f} us a pair, "
        f"{row['pairs_per_s']:,.0f} pairs/s, {row['over_counted']:.2f} of counted, batches of {row['batch_pairs']}"
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.models", description=__doc__)
    parser.add_argument("--history", type=int, default=200, help="events of a history (default: 200)")
    parser.add_argument("--candidates", type=int, nargs="+", default=_CANDIDATES, help="candidates of a request")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; medians count (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long a run takes (default: 4)")
    parser.add_argument("--save", action="store_true", help=f"keep the line in {RESULTS.relative_to(PROJECT_ROOT)}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1:])
