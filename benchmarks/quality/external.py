"""Rivals of other packages, in an environment of their own: built here once, exchanging Parquet. No JVM.

Tuned on the validation ds by NDCG@10, then fitted anew for each test ds on all events before it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from benchmarks.environments import environment
from benchmarks.quality import ml_100k, ta_feng
from benchmarks.quality.folders import ROOT, code_hash, key_of
from benchmarks.quality.measures import ALL, measure
from benchmarks.quality.prepared import REQUEST_ID, Prepared, TestSet, open_prepared
from benchmarks.quality.tifu_knn import first_requests
from gesr_core.content import json_bytes, replace_file, sha256_of
from gesr_core.dates import request_time_us
from gesr_core.errors import GesrError
from gesr_core.names import Col

log = logging.getLogger("benchmarks.quality")

_HERE: Final = Path(__file__).parent
_REQUIREMENTS: Final = _HERE / "requirements-rectools.txt"
_SCRIPT: Final = _HERE / "rectools_scores.py"
_TUNING_REQUESTS: Final = 1_000
# Ten events: the dense inverse goes with the cube of the items.
_EASE: Final[Mapping[str, Any]] = {"model": "ease", "min_item_events": 10}
_SASREC: Final[Mapping[str, Any]] = {
    "model": "sasrec", "min_item_events": 5, "width": 64, "session_max_len": 32, "learning_rate": 0.001,
    # About 25 CPU seconds an epoch of Ta Feng.
    "negatives": 16,
}  # fmt: skip
_EASE_CHOICES: Final = tuple(
    {**_EASE, "regularization": value} for value in (0.03, 0.1, 1.0, 10.0, 50.0, 250.0, 1000.0)
)
# An epoch of MovieLens is eight steps, one of Ta Feng 250.
_SASREC_EPOCHS: Final[Mapping[str, Sequence[int]]] = {ta_feng.NAME: (2, 4), ml_100k.NAME: (50, 100, 150)}


def choices(name: str, data: str) -> Sequence[Mapping[str, Any]]:
    """Return what is tried of a rival on a data set."""
    if name == "ease":
        return _EASE_CHOICES
    return [{**_SASREC, "epochs": epochs} for epochs in _SASREC_EPOCHS[data]]


def score_external(
    name: str, prepared: Prepared, test: TestSet, *, seed: int, tune: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a value per pair, and the choice that validation made; an item that the model does not know comes last.

    Unless `tune`, the first choice is taken untried.
    """
    choice, ndcg = tuned(name, prepared.folder) if tune else (0, None)
    chosen = choices(name, prepared.name)[choice]
    return _scored(prepared, test, chosen, seed=seed), {"tuned": dict(chosen), "validation_ndcg": ndcg}


def tuned(name: str, folder: Path) -> tuple[int, float]:
    """Return which choice ranks a part of the validation ds best, and its NDCG@10 there; kept for the other seeds."""
    prepared = open_prepared(folder)
    tried = choices(name, prepared.name)
    follows_from = [prepared.key, tried, code_hash([_SCRIPT, Path(__file__)]), sha256_of(_REQUIREMENTS)]
    kept = ROOT / "quality" / prepared.name / f"tuned/{name}-{key_of(follows_from)}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not kept.is_file():
            test = first_requests(prepared.test(prepared.regime.validation), _TUNING_REQUESTS)
            found = [_scored(prepared, test, choice, seed=1) for choice in tried]
            replace_file(kept, json_bytes([measure(test, value_P).values()[ALL]["ndcg"] for value_P in found]))
    ndcg = json.loads(kept.read_bytes())
    best = int(np.argmax(ndcg))
    return best, ndcg[best]


def histories(events: pa.Table, *, request_U: np.ndarray, user_U: np.ndarray, time_us_U: np.ndarray) -> pa.Table:
    """Return (user_id, item_id, event_us) with each request as a user: its user's events before its own time."""
    ordered = events.sort_by([(Col.USER_ID, "ascending"), ("event_us", "ascending"), (Col.ITEM_ID, "ascending")])
    user_E, item_E, event_us_E = (ordered[name].to_numpy() for name in (Col.USER_ID, Col.ITEM_ID, "event_us"))

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for request, user, time_us in zip(request_U, user_U, time_us_U, strict=True):
            first, last = np.searchsorted(user_E, [user, user + 1])
            last = first + np.searchsorted(event_us_E[first:last], time_us)
            yield np.full(last - first, request), item_E[first:last], event_us_E[first:last]

    columns = [np.concatenate(column) for column in zip(*parts(), strict=True)]
    return pa.table(dict(zip((Col.USER_ID, Col.ITEM_ID, "event_us"), columns, strict=True)))


def _scored(prepared: Prepared, test: TestSet, choice: Mapping[str, Any], *, seed: int) -> np.ndarray:
    before_us = request_time_us(test.ds)
    with tempfile.TemporaryDirectory(dir=ROOT) as scratch:
        paths = {name: str(Path(scratch) / f"{name}.parquet") for name in ("train", "histories", "pairs", "out")}
        pq.write_table(prepared.events_before(before_us), paths["train"])
        every = prepared.events_before(int(test.time_us_U.max()))
        pq.write_table(
            histories(every, request_U=test.unit_U, user_U=test.user_U, time_us_U=test.time_us_U), paths["histories"]
        )
        pairs = {REQUEST_ID: test.unit_U[test.unit_P], Col.ITEM_ID: test.item_P}
        pq.write_table(pa.table(pairs), paths["pairs"])
        settings = Path(scratch) / "settings.json"
        settings.write_text(json.dumps({**choice, **paths, "seed": seed}))
        _run([str(environment(_REQUIREMENTS, name="rectools")), str(_SCRIPT), str(settings)])
        value_P = pq.read_table(paths["out"])["value"].to_numpy()
    lowest = np.nanmin(value_P) if np.isfinite(value_P).any() else 0.0
    return np.nan_to_num(value_P, nan=lowest - 1.0)


def _run(command: Sequence[str]) -> None:
    # The project's own packages must not leak into the other environment.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise GesrError(f"{Path(command[1]).name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
