"""Compute one cell, in a process of its own:

python -m benchmarks.quality.work DATA CELL SEED FOLDER PLACE KEPT [--quick]
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.measures import Measured, measure
from benchmarks.quality.plan import CELLS, SEARCH, Cell, cell_config
from benchmarks.quality.prepared import Prepared, TestSet, open_prepared
from benchmarks.quality.store import Place

log = logging.getLogger("benchmarks.quality")


def main(argv: Sequence[str]) -> None:
    """Measure a cell on every test ds and keep it."""
    data, name, seed, folder, place, kept, *quick = argv
    cell = next(cell for cell in (*CELLS, *SEARCH) if cell.name == name)
    cell = cell.quickly() if quick else cell
    started_s, prepared = time.monotonic(), open_prepared(Path(folder))
    measured, facts = {}, {}
    for test, values, found in _orderings(cell, prepared, data=data, seed=int(seed), kept=Path(kept)):
        measured[test.ds] = values
        facts[test.ds] = dict(found)
        log.info("%s seed %s, %s: %s", name, seed, test.ds, _in_words(values))
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Place(Path(place)).write(
        measured, {"elapsed_s": time.monotonic() - started_s, "peak_memory_mb": memory_mb, "ds": facts}
    )


def _orderings(
    cell: Cell, prepared: Prepared, *, data: str, seed: int, kept: Path
) -> Iterator[tuple[TestSet, dict[str, Measured], Mapping[str, Any]]]:
    if cell.kind == "trained":
        # Only here: a rival needs no torch.
        from benchmarks.quality.trained import learn_and_score

        config, served = (cell_config(cell, data, seed=seed, served=served) for served in (False, True))
        found = learn_and_score(
            prepared, config, served=served, model_name=cell.model, kept=kept, on_validation=cell.on_validation
        )
        for scored in found:
            tasks = _tasks(cell, scored.test)
            values = {
                task: measure(scored.test, _score(scored, task, cell), task=i, logit_P=scored.logit_PS[:, i])
                for task, i in tasks.items()
            }
            yield scored.test, values, scored.facts
        return
    from benchmarks.quality.external import score_external
    from benchmarks.quality.rivals import score_rival

    score = partial(score_external, tune=not cell.quick) if cell.kind == "external" else score_rival
    for ds in prepared.regime.tests:
        test = prepared.test(ds)
        score_P, facts = score(cell.name, prepared, test, seed=seed)
        yield test, {task: measure(test, score_P, task=i) for task, i in _tasks(cell, test).items()}, facts


def _tasks(cell: Cell, test: TestSet) -> dict[str, int]:
    """Return the tasks to measure and their places; a model of one task is measured on it alone."""
    return {task: i for i, task in enumerate(test.tasks) if cell.task in (None, task)}


def _score(scored: Any, task: str, cell: Cell) -> np.ndarray:
    """The score for the task that ranks; other tasks are ranked by their own logit."""
    i = scored.test.tasks.index(task)
    return scored.score_P if i == 0 and cell.task is None else scored.logit_PS[:, i]


def _in_words(values: Mapping[str, Measured]) -> str:
    of_first = next(iter(values.values())).values()
    return "; ".join(
        f"{segment}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        for segment, found in of_first.items()
    )


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1:])
