"""Run the cells that are not there yet, each in a process of its own, as many at once as there are cores. No JVM.

A cell is keyed by everything that it follows from: the prepared data, its configuration, the seed, the code and the
libraries. So a run that was stopped goes on, and a changed model is measured anew. The weights of a trained cell have a
key of their own, so that cells that differ in what they serve share them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from benchmarks.quality.folders import ROOT, code_hash, key_of
from benchmarks.quality.plan import SEEDS, Cell, NotBuilt, cell_config
from benchmarks.quality.prepared import Prepared
from benchmarks.quality.store import Place, Result
from gesr_core.config import PROJECT_ROOT

log = logging.getLogger("benchmarks.quality")

LIBRARIES: Final = ("torch", "numpy", "pyarrow", "pyspark")
_HERE: Final = Path(__file__).parent
_CORE: Final = PROJECT_ROOT / "gesr_core"
# glibc is to keep the memory that a step frees, in large pages: a training step then takes about a seventh less time.
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}"
        for name in ("hugetlb=1", "mmap_threshold=1073741824", "trim_threshold=8589934592", "top_pad=67108864")
    ),
}
# What decides a cell's figures; how cells are run and shown does not.
_MEASURING: Final = [_HERE / f"{name}.py" for name in ("prepared", "measures", "work")]
# Training decodes and pads requests as serving does.
_TRAINED_BY: Final = ("model", "ops", "runtime", "training")
_TRAINING: Final = [_HERE / "prepared.py", _HERE / "trained.py", *map(_CORE.joinpath, _TRAINED_BY)]
_CODE: Final[Mapping[str, Sequence[Path]]] = {
    "rival": [*_MEASURING, _HERE / "rivals.py", _HERE / "tifu_knn.py"],
    "external": [*_MEASURING, _HERE / "external.py", _HERE / "rectools_scores.py"],
    "trained": [*_MEASURING, *_TRAINING],
}


@dataclass(frozen=True)
class Job:
    """One cell of one data set with one seed; `problem` says why it has no result (not built, failed, not run).

    `kept` is where the weights of a trained cell are.
    """

    data: str
    cell: Cell
    seed: int
    place: Place | None = None
    problem: str | None = None
    kept: Path | None = None


def jobs_of(cells: Sequence[Cell], prepared: Mapping[str, Prepared]) -> list[Job]:
    """Return what there is to do: seed after seed, so that a run that is stopped has every cell once first."""
    found = [
        _job(cell, prepared[data], seed, data=data)
        for data in prepared
        for cell in cells
        if data in cell.data
        for seed in SEEDS[: cell.seeds]
    ]
    # Cells that take the weights of another come after it.
    return sorted(found, key=lambda job: (job.seed, bool(job.cell.serving)))


def run_jobs(jobs: Sequence[Job], prepared: Mapping[str, Prepared], *, workers: int, budget_s: float) -> list[Job]:
    """Compute what is missing until the budget is spent; return the jobs as they stand then."""
    ends_s = time.monotonic() + budget_s
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(lambda job: _run(job, prepared[job.data], ends_s=ends_s), jobs))


def results_of(jobs: Sequence[Job]) -> dict[str, list[Result]]:
    """Read what is done of some jobs of one data set, by cell, in their order."""
    found: dict[str, list[Result]] = {}
    for job in jobs:
        if job.place is not None and job.problem is None:
            found.setdefault(job.cell.name, []).append(job.place.read())
    return found


def _job(cell: Cell, prepared: Prepared, seed: int, *, data: str) -> Job:
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    follows_from: dict[str, Any] = {
        "data": prepared.key, "cell": cell.name, "seed": seed, "code": code_hash(_CODE[cell.kind]),
        "libraries": libraries, "quick": cell.quick,
    }  # fmt: skip
    kept = None
    if cell.kind == "trained":
        try:
            config, served = (cell_config(cell, data, seed=seed, served=served) for served in (False, True))
        except NotBuilt as err:
            return Job(data, cell, seed, problem=f"not built: {err}")
        trained_from = {
            "data": prepared.key, "seed": seed, "code": code_hash(_TRAINING), "libraries": libraries,
            "on_validation": cell.on_validation, "model": config.models[cell.model].model_dump(mode="json"),
            "config": config.model_dump(mode="json", include={"features", "labels", "histories", "training"}),
        }  # fmt: skip
        kept = ROOT / "quality" / data / f"weights/{cell.model}-{seed}-{key_of(trained_from)}"
        follows_from["trained"] = kept.name
        follows_from["served"] = served.models[cell.model].model_dump(mode="json")
        follows_from["scoring"] = served.scoring.model_dump(mode="json")
    place = Place.of(ROOT / "quality", data=data, cell=cell.name, seed=seed, key=key_of(follows_from))
    return Job(data, cell, seed, place, kept=kept)


def _run(job: Job, prepared: Prepared, *, ends_s: float) -> Job:
    if job.place is None or job.place.is_done:
        return job
    if time.monotonic() > ends_s:
        return Job(job.data, job.cell, job.seed, problem="not run: the budget was spent")
    started_s = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.quality.work", job.data, job.cell.name, str(job.seed)]
    quick = ["--quick"] if job.cell.quick else []
    log_file = job.place.json.with_suffix(".log")
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("w") as out:
        done = subprocess.run(
            [*command, str(prepared.folder), str(job.place.json), str(job.kept or ""), *quick],
            cwd=PROJECT_ROOT,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": str(PROJECT_ROOT)},
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    name = f"{job.data} {job.cell.name} seed {job.seed}"
    if done.returncode:
        last = (log_file.read_text().strip().splitlines() or ["no message"])[-1]
        log.warning("%s failed: %s (%s)", name, last, log_file)
        return Job(job.data, job.cell, job.seed, problem=f"failed: {last}")
    log.info("%s done in %.0f s", name, time.monotonic() - started_s)
    return job
