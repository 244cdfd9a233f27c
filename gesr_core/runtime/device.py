"""Choose the device that a worker scores on. Runs in a worker or on the driver; no JVM."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import torch

from gesr_core.errors import ConfigurationError


def choose_device(wanted: str, *, setting: str = "scoring.device") -> torch.device:
    """Return the device for `cpu`, `cuda` or `auto` (a GPU where torch sees one, else the CPU), as `setting` has it.

    Raises:
        ConfigurationError: `cuda` was asked for and torch sees none; nothing falls back to the CPU unasked.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigurationError(f"{setting} is cuda, but torch sees no GPU here; set {setting} to cpu or auto")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def report_device(batches: Iterator[pa.RecordBatch], *, wanted: str) -> Iterator[pa.RecordBatch]:
    """Map each batch to one row: the device that a worker scores on, or why it cannot (the other is null)."""
    for _ in batches:
        device, error = None, None
        try:
            device = str(choose_device(wanted))
        except ConfigurationError as err:
            error = str(err)
        yield pa.RecordBatch.from_pydict(
            {"device": pa.array([device], pa.string()), "error": pa.array([error], pa.string())}
        )
