"""`python -m benchmarks.quality`: how well the models rank beside rivals; progress and a table to stderr, one JSON line
to stdout.

prepare data --> cells (model, data, seed), each in a process --> rows, goals, table, JSON line
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.line import RESULTS, emit, goal_in_words, machine, versions
from benchmarks.quality.bootstrap import RESAMPLES
from benchmarks.quality.goals import judge
from benchmarks.quality.plan import BOTH, CELLS, SEARCH, TRAINING, TRIALS
from benchmarks.quality.prepare import prepared_apart
from benchmarks.quality.prepared import Prepared
from benchmarks.quality.report import Comparisons, Data, rows, table
from benchmarks.quality.run import LIBRARIES, Job, jobs_of, results_of, run_jobs
from benchmarks.quality.search import best_first, trial_in_words, trial_row
from gesr_core.config import PROJECT_ROOT
from gesr_core.errors import ConfigurationError, GesrError

log = logging.getLogger("benchmarks.quality")

_BUDGET_MIN: Final = 100.0
_QUICK_BUDGET_MIN: Final = 15.0


def main(argv: Sequence[str]) -> None:
    """Run what is missing, then report."""
    args = _parse(argv)
    started_s = time.monotonic()
    budget_s = 60 * (args.budget_min or (_QUICK_BUDGET_MIN if args.quick else _BUDGET_MIN))
    plan = SEARCH if args.search else [cell for cell in CELLS if not cell.of_frontier]
    cells = [cell for cell in plan if any(fnmatch.fnmatch(cell.name, pattern) for pattern in args.only)]
    cells = [cell.quickly() for cell in cells] if args.quick else cells
    prepared = {data: prepared_apart(data, quick=args.quick) for data in args.data}
    jobs = jobs_of(cells, prepared)
    left_s = budget_s - (time.monotonic() - started_s)
    jobs = run_jobs(jobs, prepared, workers=args.workers, budget_s=left_s)
    report = _searched if args.search else _compared
    line = report(prepared, jobs, args, started_s=started_s)
    emit(line, device="cpu", save=args.save)
    if any(job.problem and job.problem.startswith("failed") for job in jobs):
        raise GesrError("some cells failed: see the table; run again to try them again")


def _compared(
    prepared: Mapping[str, Prepared], jobs: Sequence[Job], args: argparse.Namespace, *, started_s: float
) -> dict[str, Any]:
    """Print what the cells say of one another, and return the JSON line."""
    compared = {data: _comparisons(data, prepared[data], jobs) for data in prepared}
    comparisons = {data: found for data, found in compared.items() if found is not None}
    line = _line(comparisons, jobs, args, elapsed_s=time.monotonic() - started_s)
    for data, found in comparisons.items():
        print(table(found.data, _problems(jobs, data)), "\n", file=sys.stderr)
    for goal in line["goals"]:
        print(goal_in_words(goal), file=sys.stderr)
    return line


def _searched(
    prepared: Mapping[str, Prepared], jobs: Sequence[Job], args: argparse.Namespace, *, started_s: float
) -> dict[str, Any]:
    """Print what each trial reached on the validation ds and which is best, and return the JSON line."""
    found = [trial_row(job.cell, job.data, job.place.read()) for job in jobs if job.place and job.problem is None]
    for row in best_first(found):
        print(trial_in_words(row), file=sys.stderr)
    settings = {
        "quick": args.quick, "data": args.data, "only": args.only, "workers": args.workers, "threads_per_cell": 1,
        "trials": {data: {name: list(keys) for name, keys in trials.items()} for data, trials in TRIALS.items()},
        "training": {name or "every model": list(overrides) for name, overrides in TRAINING.items()},
        "elapsed_s": round(time.monotonic() - started_s),
    }  # fmt: skip
    return {
        "benchmark": "quality_search",
        "machine": machine(),
        "versions": versions(LIBRARIES),
        "settings": settings,
        "rows": best_first(found),
        "missing": [_missing(job) for job in jobs if job.problem],
        "goals": [],
    }


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less data, one seed, one epoch, no tuning: does it run, not how good it is",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try each model's settings on the validation ds, instead of the comparison",
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="cells whose name matches; may be repeated")
    parser.add_argument("--data", default=",".join(BOTH), help=f"data sets, by commas (default: {','.join(BOTH)})")
    parser.add_argument("--budget-min", type=float, help="begin no cell later than this (default: 100, quick: 15)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at once (default: one per core)")
    parser.add_argument("--save", action="store_true", help=f"keep the line in {RESULTS.relative_to(PROJECT_ROOT)}")
    args = parser.parse_args(argv)
    args.only = args.only or ["*"]
    args.data = args.data.split(",")
    if unknown := set(args.data) - set(BOTH):
        raise ConfigurationError(f"--data names {sorted(unknown)}; there are {list(BOTH)}")
    if args.save and args.quick:
        raise ConfigurationError("--save keeps what the documents quote: not a --quick run")
    return args


def _comparisons(data: str, prepared: Prepared, jobs: Sequence[Job]) -> Comparisons | None:
    cells = results_of([job for job in jobs if job.data == data])
    if not cells:
        return None
    ordered = {cell.name: cells[cell.name] for cell in CELLS if cell.name in cells}
    users = {ds: prepared.test(ds).user_U for ds in prepared.regime.tests}
    return Comparisons.of(Data(data, ordered, users, prepared.manifest))


def _line(
    comparisons: Mapping[str, Comparisons], jobs: Sequence[Job], args: argparse.Namespace, *, elapsed_s: float
) -> dict[str, Any]:
    settings = {
        "quick": args.quick, "data": args.data, "only": args.only, "workers": args.workers, "threads_per_cell": 1,
        "resamples": RESAMPLES, "elapsed_s": round(elapsed_s),
        "prepared": {data: dict(found.data.facts) for data, found in comparisons.items()},
        "training": {name or "every model": list(overrides) for name, overrides in TRAINING.items()},
        "cells": {
            cell.name: [cell.model, *cell.overrides]
            for cell in CELLS
            if cell.kind == "trained" and not cell.of_frontier
        },
    }  # fmt: skip
    return {
        "benchmark": "quality",
        "machine": machine(),
        "versions": versions(LIBRARIES),
        "settings": settings,
        "rows": [row for found in comparisons.values() for row in rows(found)],
        "facts": [fact for data, found in comparisons.items() for fact in _facts(data, found)],
        "missing": [_missing(job) for job in jobs if job.problem],
        "goals": [goal.to_json() for goal in judge(comparisons)],
    }


def _facts(data: str, comparisons: Comparisons) -> list[dict[str, Any]]:
    """What is known of each cell beside its measures: seconds, memory, pairs learned, what was tuned."""
    return [
        {"data": data, "cell": name, "run": number, **result.facts}
        for name, results in comparisons.data.cells.items()
        for number, result in enumerate(results)
    ]


def _missing(job: Job) -> dict[str, Any]:
    return {"data": job.data, "cell": job.cell.name, "seed": job.seed, "why": job.problem}


def _problems(jobs: Sequence[Job], data: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for job in jobs:
        if job.data == data and job.problem:
            found.setdefault(job.cell.name, " ".join(job.problem.split()))
    return found


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    try:
        main(sys.argv[1:])
    except GesrError as error:
        sys.exit(f"{type(error).__name__}: {error}")
