"""What crosses to a Spark Python worker: which checkpoint, which item states, which settings. No JVM, no pyspark.

A worker process keeps what it has loaded, by content, so that a reused worker loads nothing.
"""

from __future__ import annotations

import gc
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import torch
from torch import nn

from gesr_core.errors import InputError
from gesr_core.model.inputs import ItemState
from gesr_core.names import Col
from gesr_core.runtime.allocator import keep_freed_memory
from gesr_core.runtime.device import choose_device
from gesr_core.runtime.forms import Form, Logits, Precision, logits_of, lowered, lowered_items
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.runtime.item_states import load_item_states
from gesr_core.runtime.plan import ScorerSettings
from gesr_core.runtime.scorer import Scorer
from gesr_core.training.checkpoint import load_checkpoint
from gesr_core.training.features import FeatureSpace

# A worker keeps the models of former runs up to this size, weights and item states together (states that are mapped
# into memory are the page cache's, and count all the same).
CACHE_BYTES: Final = 4 << 30


@dataclass(frozen=True)
class ScoreShards:
    """Scores the request rows of a partition; small, hashable, and picklable by reference.

    Paths must be seen by every executor under the same name; the ids are checked against what lies there. `halved` is
    what an earlier run recorded of micro-batches that memory could not bear (`sink.work.Work.halved`), to be repeated.
    With a `trace_folder` each task writes a trace of its first window there.
    """

    checkpoint: str
    checkpoint_id: str
    item_states: str
    items_version: str
    settings: ScorerSettings
    device: str
    threads: int
    item_table_bytes: int | None = None
    workers_per_gpu: int = 1
    halved: tuple[tuple[int, int, int, int, int], ...] = ()
    trace_folder: str | None = None

    def __call__(self, batches: Iterator[pa.RecordBatch], *, gpu: str | None = None) -> Iterator[pa.RecordBatch]:
        """Map request rows, sorted by (shard, part, user, request), to one score row per user, on the granted GPU."""
        scored = task_scorer(self, gpu=gpu).score(batches)
        return scored if self.trace_folder is None else traced(scored, folder=Path(self.trace_folder))

    def choose_device(self, gpu: str | None) -> torch.device:
        """Return the device to score on; `gpu` is the address that Spark granted."""
        return choose_device(self.device, gpu=gpu)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's model in one form and the item states that go with it, as a worker keeps them.

    `logits` is what scores with it, compiled where the form says so; `counted_bytes` is what its scorers counted that
    requests of a shape need.
    """

    model: nn.Module
    logits: Logits
    features: FeatureSpace
    items: ItemState
    index: ItemIndex
    counted_bytes: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The size of weights and item states."""
        return self.items.nbytes + sum(tensor.nbytes for tensor in self.model.state_dict().values())


class ModelCache:
    """Keeps what was loaded under its content ids, the least used thrown out beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[tuple[str, ...], Loaded] = OrderedDict()

    def get(self, key: tuple[str, ...], load: Callable[[], Loaded]) -> tuple[Loaded, bool]:
        """Return what is kept under `key`, or load it; say which. What was asked for last always stays."""
        hit = key in self._kept
        if not hit:
            self._kept[key] = load()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(loaded.nbytes for loaded in self._kept.values()) > self.limit_bytes:
            self._kept.popitem(last=False)
        return self._kept[key], hit

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()


_cache = ModelCache(CACHE_BYTES)


def forget_loaded() -> None:
    """Give back the memory of all that this process has loaded."""
    _cache.clear()
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def task_scorer(task: ScoreShards, *, gpu: str | None = None) -> Scorer:
    """Return a scorer for the task, around what this process has loaded already where it has.

    Raises:
        InputError: checkpoint or item states are missing, altered, or others than the pinned ones.
        ConfigurationError: there is no such device as is configured, or as was granted.
    """
    keep_freed_memory()
    # Spark runs one Python worker per task slot: more threads each would only fight over the cores.
    torch.set_num_threads(task.threads)
    device = task.choose_device(gpu)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(1 / task.workers_per_gpu, device)
    started_s = time.perf_counter()
    form = (task.settings.precision, task.settings.compiled)
    key = (task.checkpoint_id, task.items_version, str(device), str(task.item_table_bytes), *form)
    loaded, hit = _cache.get(key, lambda: load(task, device=device))
    halved: dict[tuple[int, int, int], dict[int, int]] = {}
    for shard, part, window, micro_batch, halvings in task.halved:
        halved.setdefault((shard, part, window), {})[micro_batch] = halvings
    return Scorer(
        loaded.model,
        items=loaded.items,
        index=loaded.index,
        encode_users=loaded.features.encode_users,
        actions=loaded.features.actions,
        settings=task.settings,
        device=device,
        # A trace is of one thread.
        overlap=None if task.trace_folder is None else False,
        halved=halved,
        load_s=0.0 if hit else time.perf_counter() - started_s,
        counted_bytes=loaded.counted_bytes,
        logits=loaded.logits,
    )


def traced(scored: Iterator[pa.RecordBatch], *, folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the score rows of windows, and write a trace of how the first came about (for Perfetto or Chrome)."""
    with torch.profiler.profile(record_shapes=True) as profiler:
        first = next(scored, None)
    if first is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    shard, part = first.column(Col.SHARD)[0].as_py(), first.column(Col.STATS)[0].as_py()["part"]
    profiler.export_chrome_trace(str(folder / f"shard-{shard}-{part}-{os.getpid()}.json.gz"))
    yield first
    yield from scored


def load(task: ScoreShards, *, device: torch.device) -> Loaded:
    """Load checkpoint and item states, check that they are those that the driver pinned, and put them into form.

    Raises:
        InputError: they are missing, altered, or others than the pinned ones.
    """
    checkpoint = load_checkpoint(Path(task.checkpoint))
    states = load_item_states(Path(task.item_states), verify=False)
    found = (checkpoint.checkpoint_id, states.items_version)
    if found != (task.checkpoint_id, task.items_version):
        raise InputError(
            f"{task.checkpoint} and {task.item_states} hold {found}, but the run pinned "
            f"{(task.checkpoint_id, task.items_version)}; they changed under the run"
        )
    form = Form(task.settings.precision, task.settings.compiled)
    items, index = on_device(
        states.items, states.index, device=device, limit_bytes=task.item_table_bytes, precision=form.precision
    )
    model = lowered(checkpoint.build().eval().to(device), form.precision)
    return Loaded(model, logits_of(model, form, device=device), checkpoint.features, items, index)


def on_device(
    items: ItemState, index: ItemIndex, *, device: torch.device, limit_bytes: int | None, precision: Precision = "fp32"
) -> tuple[ItemState, ItemIndex]:
    """Put item states, in `precision`, and their index on the device if they fit `limit_bytes` (None: always).

    Larger ones stay in host memory as they are, where each micro-batch gathers what it needs; so do a CPU's, because
    the workers of a host share the pages of the file.
    """
    if limit_bytes is not None and items.nbytes > limit_bytes:
        return items, index
    if device.type == "cpu":
        return items, index.to(device)
    return lowered_items(items, precision).map(lambda tensor: tensor.to(device)), index.to(device)
