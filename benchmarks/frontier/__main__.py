"""`python -m benchmarks.frontier`: how well each model ranks against what a pair costs, and whether a cheaper rival
ranks as well. Progress and a table to stderr, one JSON line to stdout; a picture with --save.

Quality is that of the cells of `benchmarks.quality` on Ta Feng (what is not there yet is trained), cost that of the
kept weights on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.compute as pc
import torch

from benchmarks.environments import environment
from benchmarks.frontier.cost import Bench, Way, external_seconds, of_model, of_rival
from benchmarks.frontier.points import Row, judge, point_of, row_of, table
from benchmarks.line import RESULTS, emit, goal_in_words, machine, versions
from benchmarks.quality import ta_feng
from benchmarks.quality.plan import CELLS, Cell
from benchmarks.quality.prepare import prepared_apart
from benchmarks.quality.report import Data
from benchmarks.quality.run import LIBRARIES, Job, jobs_of, results_of, run_jobs
from benchmarks.quality.store import Result
from gesr_core.config import PROJECT_ROOT
from gesr_core.errors import GesrError
from gesr_core.names import Col

log = logging.getLogger("benchmarks.frontier")

BATCH_PAIRS_TRIED: Final = (2_048, 4_096, 8_192)
PICTURE: Final = PROJECT_ROOT / "docs/frontier.svg"
# What shows how training works, and is no setting that anybody would serve.
_DIAGNOSTIC: Final = ("gesr_bought_alone", "gesr_bought_high_spend_alone", "tarq_alignment", "tarq_no_alignment")
_HERE: Final = Path(__file__).parent
# Below this the difference of two passes says nothing.
_LEAST_US: Final = 0.001


def main(argv: Sequence[str]) -> None:
    """Measure quality and cost of every cell, and report."""
    args = _parse(argv)
    torch.set_num_threads(1)
    data = ta_feng.NAME
    cells = {cell.name: cell for cell in CELLS if data in cell.data and cell.name not in _DIAGNOSTIC}
    prepared = prepared_apart(data, quick=False)
    todo = jobs_of(list(cells.values()), {data: prepared})
    jobs = run_jobs(todo, {data: prepared}, workers=args.workers, budget_s=60 * args.budget_min)
    if missing := [f"{job.cell.name} seed {job.seed}: {job.problem}" for job in jobs if job.problem]:
        raise GesrError(f"not all cells are measured: {'; '.join(missing)}; run again to go on")
    results = results_of(jobs)
    bench = Bench.of(prepared, requests=args.requests)
    log.info("%d requests, %d pairs of %s", len(bench.test.unit_U), bench.pairs, bench.test.ds)
    costs = measure_costs(bench, cells, jobs, results, repeats=args.repeats)
    quality = Data(data, results, {ds: np.empty(0) for ds in prepared.regime.tests}, {})
    points = [point_of(name, cell, costs[name], quality) for name, cell in cells.items()]
    rows = [row_of(point, cells[point.name], costs[point.name], points, quality) for point in points]
    print(table(rows), file=sys.stderr)
    goals = list(judge(points))
    for found in goals:
        print(goal_in_words(found), file=sys.stderr)
    line = {
        "benchmark": "frontier",
        "machine": machine(),
        "versions": versions(LIBRARIES),
        "settings": {
            "data": data, "tests": list(prepared.regime.tests), "cost_on": bench.test.ds, "threads": 1,
            "requests": len(bench.test.unit_U), "pairs": bench.pairs, "repeats": args.repeats,
            "batch_pairs_tried": list(BATCH_PAIRS_TRIED), "precision": "fp32",
            "events_per_request": float(
                pc.mean(pc.list_value_length(bench.rows.column(Col.HISTORY_ITEM_ID))).as_py()
            ),
        },
        "rows": rows,
        # Every pass of EASE and SASRec is held against their values; the others are one implementation.
        "max_score_difference": None,
        "goals": goals,
    }  # fmt: skip
    emit(line, device="cpu", save=args.save)
    if args.save:
        _draw(rows)


def measure_costs(
    bench: Bench,
    cells: Mapping[str, Cell],
    jobs: Sequence[Job],
    results: Mapping[str, Sequence[Result]],
    *,
    repeats: int,
) -> dict[str, Row]:
    """Return for each cell the seconds of some passes over the requests and the batch size that suits it best.

    Passes go round by round over all cells, but for RecTools', whose processes come one after the other.
    """
    kept = {job.cell.name: job.kept for job in jobs if job.seed == 1}
    facts = {name: found[0].facts["ds"].get(bench.test.ds, {}) for name, found in results.items()}
    ways: dict[str, Way] = {}
    costs: dict[str, Row] = {}
    for name, cell in cells.items():
        if cell.kind == "external":
            seconds = external_seconds(bench, facts[name], repeats=repeats)
            costs[name] = {"seconds": seconds, "batch_pairs": None}
        elif cell.kind == "rival":
            ways[name] = of_rival(bench, name, facts[name])
        else:
            weights = kept[name]
            if weights is None:
                raise GesrError(f"{name} has no weights")
            ways[name] = of_model(bench, cell, weights, batch_pairs=BATCH_PAIRS_TRIED)
        log.info("%s is ready", name)
    best: dict[str, int] = {}
    for name, way in ways.items():
        for size in way.sizes:
            way.run(size)
        tried = {size: way.run(size) for size in way.sizes}
        best[name] = min(tried, key=tried.__getitem__)
        costs[name] = {"seconds": [], "batch_pairs": best[name] or None}
    for repeat in range(repeats):
        for name, way in ways.items():
            costs[name]["seconds"].append(way.run(best[name]))
        log.info("pass %d of %d", repeat + 1, repeats)
    for found in costs.values():
        s = statistics.median(found["seconds"])
        found["us_per_pair"] = max(_LEAST_US, 1e6 * s / bench.pairs)
        found["seconds"] = [round(one, 4) for one in found["seconds"]]
    return costs


def _draw(rows: Sequence[Row]) -> None:
    """Draw the points, in an environment of its own."""
    python = environment(_HERE / "requirements-plot.txt", name="plot")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(list(rows), file)
        file.flush()
        subprocess.run([str(python), str(_HERE / "plot.py"), file.name, str(PICTURE)], check=True)
    log.info("drawn: %s", PICTURE.relative_to(PROJECT_ROOT))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.frontier", description=__doc__)
    parser.add_argument("--requests", type=int, default=400, help="requests that cost is measured on (default: 400)")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each; medians count (default: 5)")
    parser.add_argument("--budget-min", type=float, default=100.0, help="begin no cell later than this (default: 100)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at once (default: one per core)")
    parser.add_argument(
        "--save", action="store_true",
        help=f"keep the line in {RESULTS.relative_to(PROJECT_ROOT)} and the picture in docs",
    )  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    try:
        main(sys.argv[1:])
    except GesrError as error:
        sys.exit(f"{type(error).__name__}: {error}")
