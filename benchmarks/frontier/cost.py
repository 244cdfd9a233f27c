"""What a pair costs, on one core: our models through the scorer that serves, rivals as fast as they are written here.

All value the same requests of the last test ds, those whose candidate lists are whole. Ours go from Arrow request rows
to Arrow score rows; of a rival the values alone are timed: not what is read, not the best K.

Legend: P pairs, U units (requests).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from benchmarks.environments import environment
from benchmarks.quality.external import histories
from benchmarks.quality.folders import ROOT
from benchmarks.quality.plan import Cell, cell_config
from benchmarks.quality.prepared import REQUEST_ID, Prepared, TestSet
from benchmarks.quality.rivals import RIVALS
from benchmarks.quality.tifu_knn import Decay, score, vectors_before
from benchmarks.quality.trained import scorer_settings, weights_file
from gesr_core.dates import request_time_us
from gesr_core.errors import GesrError
from gesr_core.model.build import Model, build_model
from gesr_core.names import Col
from gesr_core.runtime.device import CPU_BATCH_BYTES
from gesr_core.runtime.scorer import Scorer
from gesr_core.training.data import index_of, sorted_by_key
from gesr_core.training.trainer import fit_features

_HERE: Final = Path(__file__).parent
_QUALITY: Final = _HERE.parent / "quality"
_CPU: Final = torch.device("cpu")
_LOOK_UPS: Final = 20
Tuned = Mapping[str, Any]


@dataclass(frozen=True)
class Way:
    """A way of valuing the requests: the seconds of one pass, by batch size where it has one."""

    run: Callable[[int], float]
    sizes: Sequence[int] = (0,)


@dataclass(frozen=True)
class Bench:
    """The requests that are valued, as a test set and as the request rows that workers get."""

    prepared: Prepared
    test: TestSet
    rows: pa.RecordBatch

    @staticmethod
    def of(prepared: Prepared, *, requests: int) -> Bench:
        """Take the first requests of the last test ds whose lists are whole."""
        test = whole_requests(prepared.test(prepared.regime.tests[-1]), most=requests)
        return Bench(prepared, test, request_rows(test.rows))

    @property
    def pairs(self) -> int:
        """How many pairs they have."""
        return len(self.test.item_P)


def whole_requests(test: TestSet, *, most: int) -> TestSet:
    """Cut a test set to its first requests by id that have a positive: lists of the others are thinned."""
    bought_U = np.bincount(test.unit_P, weights=test.label_PS.max(axis=1), minlength=len(test.unit_U)) > 0
    chosen = np.flatnonzero(bought_U)[:most]
    place_U = np.full(len(test.unit_U), -1)
    place_U[chosen] = np.arange(len(chosen))
    kept_P, kept = place_U[test.unit_P] >= 0, place_U[test.truth_unit] >= 0
    rows = test.rows.filter(pc.is_in(test.rows[REQUEST_ID], pa.array(test.unit_U[chosen])))
    return replace(
        test,
        unit_U=test.unit_U[chosen],
        user_U=test.user_U[chosen],
        time_us_U=test.time_us_U[chosen],
        unit_P=place_U[test.unit_P[kept_P]],
        item_P=test.item_P[kept_P],
        label_PS=test.label_PS[kept_P],
        weight_P=test.weight_P[kept_P],
        truth_unit=place_U[test.truth_unit[kept]],
        truth_item=test.truth_item[kept],
        truth_label_S=test.truth_label_S[kept],
        rows=rows,
    )


def request_rows(rows: pa.Table) -> pa.RecordBatch:
    """Add to labelled request rows what the rows that are served have besides (join/requests.py)."""
    zeros = pa.array(np.zeros(rows.num_rows, dtype=np.int32))
    rejected = pa.list_(pa.struct([(Col.ITEM_ID, pa.int64()), (Col.REASON, pa.string())]))
    columns = {name: rows[name] for name in rows.column_names}
    columns |= {
        Col.SHARD: zeros, Col.PART: zeros, Col.REQUEST: zeros,
        Col.REJECTED: pa.array([[]] * rows.num_rows, rejected),
        Col.CANDIDATES_IN: pc.cast(pc.list_value_length(rows[Col.CANDIDATE_ITEM_ID]), pa.int64()),
    }  # fmt: skip
    [batch] = pa.table(columns).combine_chunks().to_batches()
    return batch


def of_model(bench: Bench, cell: Cell, weights: Path, *, batch_pairs: Sequence[int]) -> Way:
    """Return the scorer of a trained cell, with the weights that the last test ds was measured with."""
    prepared, ds = bench.prepared, bench.test.ds
    config, served = (cell_config(cell, prepared.name, seed=1, served=served) for served in (False, True))
    features = fit_features(prepared.training_set(), config)
    model = build_model(served.models[cell.model], features.sizes)
    model.load_state_dict(load_file(weights_file(weights, len(prepared.regime.steps) - 1)))
    model.eval()
    items = sorted_by_key(prepared.items([ds])[ds])
    with torch.inference_mode():
        states = cast(Model, model).encode_items(features.encode_items(items))
    states, index = states.map(torch.Tensor.contiguous), index_of(items)
    settings = replace(scorer_settings(served, features, ds=ds), batch_bytes=CPU_BATCH_BYTES)
    # Which bytes a request needs follows from its shape alone.
    counted: dict[tuple[int, int], int] = {}
    scorers = {
        size: Scorer(
            model,
            items=states,
            index=index,
            encode_users=features.encode_users,
            actions=features.actions,
            settings=replace(settings, batch_pairs=size),
            device=_CPU,
            counted_bytes=counted,
        )
        for size in batch_pairs
    }

    def run(size: int) -> float:
        started_s = time.perf_counter()
        for _ in scorers[size].score(iter([bench.rows])):
            pass
        return time.perf_counter() - started_s

    return Way(run, batch_pairs)


def of_rival(bench: Bench, name: str, tuned: Tuned) -> Way:
    """Return a rival in numpy or torch, less what it takes for a single request: counting the events, mostly."""
    known = _Known(bench.prepared.folder, bench.prepared.manifest)
    # A look-up is so cheap that more of them are wanted.
    times = 1 if name == "tifu_knn" else _LOOK_UPS
    test, one = tiled(bench.test, times), whole_requests(bench.test, most=1)
    if name == "tifu_knn":
        choice = tuned["tuned"]
        vectors = vectors_before(known, test.ds, decay=Decay(**choice["decay"]))
        grid = [(choice["neighbours"], choice["own_share"])]

    def values(test: TestSet) -> object:
        if name == "tifu_knn":
            return list(score(vectors, test, grid))
        if name == "random":
            return np.random.default_rng(1).random(len(test.item_P))
        return RIVALS[name](known, test)

    def run(_: int) -> float:
        return (_seconds(lambda: values(test)) - _seconds(lambda: values(one))) / times

    return Way(run)


@dataclass(frozen=True)
class _Known(Prepared):
    """A prepared data set whose events are read once."""

    read: dict[int, pa.Table] = field(default_factory=dict)

    def events_before(self, ds_us: int) -> pa.Table:
        if ds_us not in self.read:
            self.read[ds_us] = super().events_before(ds_us)
        return self.read[ds_us]


def tiled(test: TestSet, times: int) -> TestSet:
    """Return a test set whose pairs come several times."""
    return replace(
        test,
        unit_P=np.tile(test.unit_P, times),
        item_P=np.tile(test.item_P, times),
    )


def _seconds(done: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    done()
    return time.perf_counter() - started_s


def external_seconds(bench: Bench, tuned: Tuned, *, repeats: int) -> list[float]:
    """Return the seconds of some passes of EASE or SASRec of RecTools, fitted as for the last test ds.

    Raises:
        GesrError: their process failed; why stands on stderr.
    """
    prepared, test = bench.prepared, bench.test
    with tempfile.TemporaryDirectory(dir=ROOT) as scratch:
        paths = {name: str(Path(scratch) / f"{name}.parquet") for name in ("train", "histories", "asked", "pairs")}
        before, whole = prepared.events_before(request_time_us(test.ds)), prepared.test(test.ds)
        # RecTools multiplies with matrices that reach as far as the items that somebody bought: of all requests, then.
        known, asked = (
            histories(before, request_U=of.unit_U, user_U=of.user_U, time_us_U=of.time_us_U) for of in (whole, test)
        )
        pairs = pa.table({REQUEST_ID: test.unit_U[test.unit_P], Col.ITEM_ID: test.item_P})
        for name, table in (("train", before), ("histories", known), ("asked", asked), ("pairs", pairs)):
            pq.write_table(table, paths[name])
        settings, seconds = Path(scratch) / "settings.json", Path(scratch) / "seconds.json"
        settings.write_text(
            json.dumps({**tuned["tuned"], **paths, "seed": 1, "repeats": repeats, "seconds": str(seconds)})
        )
        python = environment(_QUALITY / "requirements-rectools.txt", name="rectools")
        command = [str(python), str(_HERE / "rectools_cost.py"), str(_QUALITY), str(settings)]
        # The project's own packages must not leak into the other environment.
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        env |= {"OMP_NUM_THREADS": "1"}
        if subprocess.run(command, env=env, stdout=sys.stderr, check=False).returncode:
            raise GesrError("rectools_cost.py failed: see above")
        return [float(found) for found in json.loads(seconds.read_bytes())]
