"""The device that a worker scores on, and what fits it. Runs in a worker or on the driver; no JVM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import torch

from gesr_core.errors import ConfigurationError

# On a CPU a micro-batch should stay in the core's own cache (gesr of width 64, one core: 165,000 pairs/s with 2,048 to
# 8,192, 107,000 with 32,768); a GPU is to have all the work that its memory bears at once.
CPU_BATCH_PAIRS: Final = 4_096
GPU_BATCH_PAIRS: Final = 1 << 20
# Requests with few candidates cost what their histories cost, and many of those outgrow the caches too (256 events and
# one candidate: 645 pairs/s, without this bound 225; at 500 candidates the pairs bound it first).
CPU_BATCH_BYTES: Final = 64 << 20
# What the allocator's fragments, libraries and the driver take of a GPU's free memory besides.
_USABLE: Final = 0.8
# Free memory is never the same twice; a plan that is made from it in steps mostly is.
_STEP_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class WorkerDevice:
    """What a worker says of its device; `free_bytes` is a GPU's memory that nobody has taken, None on a CPU."""

    device: str
    free_bytes: int | None = None


@dataclass(frozen=True)
class Sizes:
    """How much a worker takes on at once: decided once per run, recorded, and the same in every resume and replay.

    `batch_pairs` and `batch_bytes` bound a micro-batch (plan.ScorerSettings), `item_table_bytes` the item states that
    are kept on the device; None: no bound.
    """

    batch_pairs: int
    batch_bytes: int | None = None
    item_table_bytes: int | None = None


def fitting_sizes(worker: WorkerDevice, *, workers: int, item_table_bytes: int) -> Sizes:
    """Return what fits a worker's device.

    Args:
        worker: what it said of it.
        workers: how many workers share a GPU: each has an equal share of its memory.
        item_table_bytes: what the item states take; they stay in host memory when that is more than half the share.
    """
    if worker.free_bytes is None:
        return Sizes(CPU_BATCH_PAIRS, batch_bytes=CPU_BATCH_BYTES)
    usable = int(_USABLE * (worker.free_bytes // _STEP_BYTES * _STEP_BYTES) / workers)
    taken = item_table_bytes if item_table_bytes <= usable // 2 else 0
    return Sizes(GPU_BATCH_PAIRS, batch_bytes=usable - taken, item_table_bytes=usable // 2)


def choose_device(wanted: str, *, setting: str = "scoring.device", gpu: str | None = None) -> torch.device:
    """Return the device for `cpu`, `cuda` or `auto` (a GPU where torch sees one, else the CPU), as `setting` has it.

    Args:
        wanted: what is configured.
        setting: its name, for messages.
        gpu: the address of the GPU that Spark granted to this task: its number on this host, or its UUID. That one is
            used and no other. None: nothing was granted, and the first one is used.

    Raises:
        ConfigurationError: `cuda` was asked for, or a GPU was granted, and torch does not see it; nothing falls back to
            the CPU unasked.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu is not None:
        return torch.device("cuda", _number_of(gpu, seen=seen))
    if wanted == "cuda" and not seen:
        raise ConfigurationError(f"{setting} is cuda, but torch sees no GPU here; set {setting} to cpu or auto")
    return torch.device("cuda", 0) if seen else torch.device("cpu")


def _number_of(address: str, *, seen: int) -> int:
    """Return torch's number of the GPU that Spark's discovery script called `address`."""
    uuids = [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in range(seen)]
    number = int(address) if address.isdecimal() else uuids.index(address) if address in uuids else seen
    if number >= seen:
        raise ConfigurationError(
            f"Spark granted GPU {address}, but torch sees {seen} GPUs here: the discovery script and "
            "CUDA_VISIBLE_DEVICES must speak of the same ones, or scoring.device be cpu"
        )
    return number


def report_device(
    batches: Iterator[pa.RecordBatch], *, wanted: str, gpu: str | None = None
) -> Iterator[pa.RecordBatch]:
    """Map each batch to one row: the device that a worker scores on and its free memory, or why it cannot."""
    for _ in batches:
        device, free_bytes, error = None, None, None
        try:
            chosen = choose_device(wanted, gpu=gpu)
            device = str(chosen)
            free_bytes = torch.cuda.mem_get_info(chosen)[0] if chosen.type == "cuda" else None
        except ConfigurationError as err:
            error = str(err)
        yield pa.RecordBatch.from_pydict(
            {
                "device": pa.array([device], pa.string()),
                "free_bytes": pa.array([free_bytes], pa.int64()),
                "error": pa.array([error], pa.string()),
            }
        )
