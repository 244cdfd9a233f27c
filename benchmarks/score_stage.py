"""`python -m benchmarks.score_stage`: the scoring stage in Spark, on one core, beside what people write instead of it.

The same model, weights and requests for all; each rival with the batch size that suits it best, and no more work than
the stage has: reading the request rows, scoring, and handing the results to a sink that drops them.
  (a) pairs      one row per pair, history and all, through predict_batch_udf
  (b) udf        an iterator pandas UDF over request rows
  (c) pandas     mapInPandas over request rows
  (d) ray        Ray Data's map_batches over the same rows, in an environment of its own
Progress to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
import torch
from pyspark.sql import SparkSession

from benchmarks.counted import gemm_peak, request_flops
from benchmarks.line import RESULTS, emit, goal, goal_in_words, machine, versions
from benchmarks.made_up import WHOLE_GESR, World, make_world, settings_for, write_world
from benchmarks.plain import COLUMNS, USER_INDICES, BestOfFrames, pair_predictor
from benchmarks.sessions import one_core
from benchmarks.ways import (
    BATCH_PAIRS_TRIED,
    PAIRS_TRIED,
    REQUESTS_TRIED,
    RIVALS,
    Input,
    Timed,
    best_size,
    ray_environment,
    timed,
    ways_of,
    write_input,
)
from gesr_core.config import PROJECT_ROOT
from gesr_core.errors import GesrError
from gesr_core.names import Col
from gesr_core.runtime.worker import ScoreShards, task_scorer

log = logging.getLogger("benchmarks.score_stage")

_HISTORIES: Final = (64, 200, 256)
_CANDIDATES: Final = (1, 16, 256, 500, 1_000)
# Below this ratio of counted operations a history per pair costs little, and the goal is another.
_COUNTED_FROM: Final = 2.0
Row = dict[str, Any]
_CPU: Final = torch.device("cpu")


def main(argv: Sequence[str]) -> None:
    """Measure every size, and report."""
    args = _parse(argv)
    torch.set_num_threads(1)
    if "ray" in args.rivals:
        # Before an hour of measuring, not after it.
        ray_environment()
    rows = []
    with tempfile.TemporaryDirectory() as folder, one_core("score_stage", Path(folder)) as spark:
        for history_length in sorted(set(args.histories)):
            world = make_world("gesr", *WHOLE_GESR, max_history=history_length, device=_CPU)
            place = Path(folder) / str(history_length)
            saved = write_world(world, place, settings=settings_for(world, candidates=1))
            for candidates in sorted(set(args.candidates)):
                rows.append(_row(spark, world, saved, place / str(candidates), candidates, args))
                log.info(_in_words(rows[-1]))
    goals = _goals(rows)
    for found in goals:
        print(goal_in_words(found), file=sys.stderr)
    line = {
        "benchmark": "score_stage",
        "machine": machine(),
        "versions": versions(("torch", "numpy", "pyarrow", "pandas", "pyspark")),
        "settings": {
            "model": "gesr", "overrides": list(WHOLE_GESR), "threads": 1, "master": "local[1]", "precision": "fp32",
            "repeats": args.repeats, "seconds": args.seconds, "rivals": list(args.rivals),
            "pairs_tried": list(PAIRS_TRIED), "requests_tried": list(REQUESTS_TRIED),
            "batch_pairs_tried": list(BATCH_PAIRS_TRIED),
        },
        "rows": rows,
        "max_score_difference": max((row["max_score_difference"] for row in rows), default=None),
        "goals": goals,
    }  # fmt: skip
    emit(line, device="cpu", save=args.save)


def _row(
    spark: SparkSession, world: World, saved: ScoreShards, folder: Path, candidates: int, args: argparse.Namespace
) -> Row:
    """Measure all ways of scoring requests of one size, by turns."""
    history_length = world.features.max_history
    flops = request_flops(world, history_length=history_length, candidates=candidates)
    pair_flops = request_flops(world, history_length=history_length, candidates=1)
    peak = gemm_peak(torch.float32, device=_CPU)
    # What the scorer does at best: nobody needs more for runs of the time asked for.
    most = int(np.clip(args.seconds * peak / flops, 4, 20_000))
    given = write_input(world, folder, history_length=history_length, candidates=candidates, users=most)
    task = replace(saved, settings=settings_for(world, candidates=candidates))
    found: dict[str, list[Timed]] = {}
    failed: dict[str, str] = {}
    best: dict[str, tuple[int, int]] = {}
    with ways_of(spark, task, given, rivals=args.rivals) as ways:
        for repeat in range(args.repeats):
            for name, way in ways.items():
                if name in failed:
                    continue
                try:
                    if not repeat:
                        best[name] = best_size(way, given, seconds=args.seconds)
                    size, users = best[name]
                    run = timed(way, users=users, size=size)
                    if run.s_per_user <= 0:
                        raise GesrError(f"{users} users took no longer than one: {run}")
                    found.setdefault(name, []).append(run)
                except Exception as err:
                    # A rival that fails takes nothing of the others with it.
                    failed[name] = f"{type(err).__name__}: {err}".splitlines()[0][:300]
                    log.warning("%s failed: %s", name, failed[name])
    peak = max(peak, gemm_peak(torch.float32, device=_CPU))
    ways_found: Row = {name: {"failed": why} for name, why in failed.items()}
    for name, runs in found.items():
        if name in failed:
            continue
        pairs_per_s = candidates / statistics.median(run.s_per_user for run in runs)
        of_pair = pair_flops if name == "pairs" else flops / candidates
        ways_found[name] = {
            "batch": best[name][0], "users": best[name][1], "seconds": [round(run.seconds, 4) for run in runs],
            "fixed_s": [round(run.fixed_s, 4) for run in runs], "pairs_per_s": pairs_per_s,
            "share_of_peak": pairs_per_s * of_pair / peak,
        }  # fmt: skip
    return {
        "history": history_length, "candidates": candidates, "flops_per_pair": flops / candidates,
        "counted_ratio": pair_flops * candidates / flops, "gemm_peak_flops_per_s": peak,
        "max_score_difference": _difference(task, given), "ways": ways_found,
    }  # fmt: skip


def _difference(task: ScoreShards, given: Input) -> float:
    """Return the largest difference of a score between our stage and the rivals' code, on some requests."""
    table = pq.read_table(given.path, filters=[(Col.USER_ID, "<", 4)])
    [batch] = table.drop_columns([USER_INDICES]).combine_chunks().to_batches()
    ours = {
        (row[Col.USER_ID], pair[Col.ITEM_ID]): pair[Col.SCORE]
        for scored in task_scorer(task).score(iter([batch]))
        for row in scored.select([Col.USER_ID, Col.RANKED]).to_pylist()
        for pair in row[Col.RANKED]
    }
    frame = table.select(list(COLUMNS)).to_pandas()
    best = BestOfFrames(task, 2).of(frame)
    lists = zip(best[Col.USER_ID].tolist(), best[Col.ITEM_ID].tolist(), best[Col.SCORE].tolist(), strict=True)
    theirs = {(user, item): score for user, items, found in lists for item, score in zip(items, found, strict=True)}
    weights = np.array(task.settings.score_weights, dtype=np.float32)
    exploded = frame.explode(COLUMNS[-1]).head(64)
    columns = [np.stack(exploded[name].to_list()) for name in COLUMNS[1:-1]]
    scores = pair_predictor(task)()(*columns, exploded[COLUMNS[-1]].to_numpy(dtype=np.int64)) @ weights
    of_pairs = dict(zip(zip(exploded[Col.USER_ID], exploded[COLUMNS[-1]], strict=True), scores, strict=True))
    both = [abs(ours[key] - found[key]) for found in (theirs, of_pairs) for key in ours.keys() & found.keys()]
    return float(max(both))


def _goals(rows: Sequence[Row]) -> list[Row]:
    """Return the goals, each for its worst size."""

    def ratios(over: str, chosen: Callable[[Row], bool], scale: Callable[[Row], float]) -> tuple[list[float], str]:
        """Return the ratios of the sizes that both did, and how many of those that were asked for they are."""
        asked = [row for row in rows if chosen(row) and over in row["ways"]]
        both = [row for row in asked if all("pairs_per_s" in row["ways"][name] for name in ("stage", over))]
        found = [row["ways"]["stage"]["pairs_per_s"] / row["ways"][over]["pairs_per_s"] / scale(row) for row in both]
        return found, "" if len(both) == len(asked) else f"{len(both)} of {len(asked)} sizes"

    def at_least(
        name: str, least: float, over: str, chosen: Callable[[Row], bool] = _any, scale: Callable[[Row], float] = _once
    ) -> Row:
        found, note = ratios(over, chosen, scale)
        return goal(name, goal=least, value=min(found, default=None), better="higher", note=note)

    counted = f"speed over pairs as a share of the ratio of counted operations, where that is above {_COUNTED_FROM:g}"
    found = [
        at_least(
            counted, 0.9, "pairs", lambda row: row["counted_ratio"] > _COUNTED_FROM, lambda row: row["counted_ratio"]
        ),
        at_least("speed over pairs at one candidate", 0.95, "pairs", lambda row: row["candidates"] == 1),
    ]
    for rival in ("udf", "pandas"):
        found.append(at_least(f"speed over {rival} at 16 candidates", 1.5, rival, lambda row: row["candidates"] == 16))
        found.append(at_least(f"speed over {rival}", 1.0, rival))
    found.append(at_least("speed over ray", 1.0, "ray"))
    over_loop, note = ratios("loop", _any, _once)
    found.append(
        goal(
            "time of the stage over that of the scorer without Spark", goal=1.1, better="lower",
            value=1 / min(over_loop) if over_loop else None, note=note,
        )
    )  # fmt: skip
    return found


def _any(row: Row) -> bool:
    return True


def _once(row: Row) -> float:
    return 1.0


def _in_words(row: Row) -> str:
    ways = ", ".join(
        f"{name} {way['pairs_per_s']:,.0f} pairs/s ({way['share_of_peak']:.0%} of peak, batches of {way['batch']})"
        if "pairs_per_s" in way
        else f"{name} failed"
        for name, way in row["ways"].items()
    )
    return f"history {row['history']}, candidates {row['candidates']}, counted ratio {row['counted_ratio']:.1f}: {ways}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    description, _, details = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.score_stage", description=description, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--histories", type=int, nargs="+", default=_HISTORIES, help="events of a history")
    parser.add_argument("--candidates", type=int, nargs="+", default=_CANDIDATES, help="candidates of a request")
    parser.add_argument("--rivals", nargs="*", default=RIVALS, choices=RIVALS, help="whom to measure beside us")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; medians count (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long a run takes (default: 2)")
    parser.add_argument("--save", action="store_true", help=f"keep the line in {RESULTS.relative_to(PROJECT_ROOT)}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1:])
