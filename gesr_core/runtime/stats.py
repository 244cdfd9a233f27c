"""What scoring a window took: counted and timed in the worker, carried by the window's first score row. No JVM.

A struct on the row, and no accumulator of Spark's, because then the figures are those of the accepted attempts: a task
that was repeated, or that ran twice at once, counts once.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Final

import pyarrow as pa
import torch

# The struct's fields and their types, in order; SQL's names of them stand in schema.STATS_TYPE.
_ARROW: Final = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}
_HALVED: Final = pa.list_(pa.struct([("micro_batch", pa.int64()), ("halvings", pa.int64())]))


@dataclass
class WindowStats:
    """One window of requests: sizes, seconds and bytes.

    `window` counts within the `part` of the shard from 0. `padded_pairs` and `padded_events` are what the model was
    given (but for requests that fill up a CUDA graph's shape), `pairs` and `events` what of it was real. `load_s` is
    what loading model and item states took, where this window was the first to need them. `peak_bytes` is the most
    memory so far: of the device's allocator, on a CPU of the process. `halved` names the micro-batches, by their number
    in the window, that had to be halved for want of memory.
    """

    window: int
    part: int
    device: str
    requests: int = 0
    pairs: int = 0
    padded_pairs: int = 0
    events: int = 0
    padded_events: int = 0
    micro_batches: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    decode_s: float = 0.0
    compute_s: float = 0.0
    encode_s: float = 0.0
    load_s: float = 0.0
    peak_bytes: int = 0
    halved: list[tuple[int, int]] = field(default_factory=list)

    def column(self, rows: int) -> pa.StructArray:
        """Return the stats as a column of `rows` >= 1 rows: at the first, null at the others."""
        entry = {**asdict(self), "halved": [{"micro_batch": n, "halvings": h} for n, h in self.halved]}
        return pa.array([entry, *[None] * (rows - 1)], STATS)


STATS: Final = pa.struct([(f.name, _ARROW.get(str(f.type), _HALVED)) for f in fields(WindowStats)])


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that was in use so far: of the device's allocator, on a CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
