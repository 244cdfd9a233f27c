"""What every benchmark's JSON line has in common: the machine, the versions, goals, and where the line is kept."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from gesr_core.config import PROJECT_ROOT
from gesr_core.content import replace_file

RESULTS: Final = PROJECT_ROOT / "benchmarks/results"


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {"cores": os.cpu_count(), "processor": _processor(), "system": platform.platform()}


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of some libraries."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in libraries}}


def goal(name: str, *, goal: float, value: float | None, better: str, note: str = "") -> dict[str, Any]:
    """Return one goal; without a value it is not judged, and one that is missed stays in the list."""
    if value is None:
        return {"name": name, "goal": goal, "value": None, "better": better, "met": None, "note": note}
    # numpy's numbers, and its truth, are not JSON's.
    value = float(value)
    met = bool(value >= goal if better == "higher" else value <= goal)
    return {"name": name, "goal": goal, "value": value, "better": better, "met": met, "note": note}


def goal_in_words(found: Mapping[str, Any]) -> str:
    """Return a goal as a line of the table."""
    verdict = {True: "met", False: "NOT met", None: "not judged"}[found["met"]]
    value = "-" if found["value"] is None else f"{found['value']:.4f}"
    return f"{verdict:<11}{found['name']}: {value} (goal {found['goal']:g}) {found['note']}"


def emit(line: Mapping[str, Any], *, device: str, save: bool) -> None:
    """Print the JSON line to stdout, and keep it among the results that documents quote."""
    text = json.dumps(line)
    if save:
        RESULTS.mkdir(exist_ok=True)
        replace_file(RESULTS / f"{line['benchmark']}.{device}.json", f"{text}\n".encode())
    print(text, flush=True)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
