"""Choose the device that a worker scores on. Runs in a worker or on the driver; no JVM."""

from __future__ import annotations

import torch

from gesr_core.errors import ConfigurationError


def choose_device(wanted: str) -> torch.device:
    """Return the device for `cpu`, `cuda` or `auto` (a GPU where torch sees one, else the CPU).

    Raises:
        ConfigurationError: `cuda` was asked for and torch sees none; nothing falls back to the CPU unasked.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigurationError(
            "scoring.device is cuda, but torch sees no GPU here; set scoring.device to cpu or auto"
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")
