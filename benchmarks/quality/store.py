"""Finished cells (model, data, seed) on disk, each under a key of everything that it follows from. Runs anywhere.

`<root>/<data>/<cell>/<seed>-<key>.json` says what was measured; the `.npz` beside it holds the sums per unit. The JSON
is written last, so that a cell that was stopped half way is not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.quality.measures import SEGMENTS, Measured, Sums
from gesr_core.content import json_bytes, replace_file

# Per ds, task and segment: the measures.
Values = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
_FIELDS: Final = tuple(field.name for field in fields(Sums))


@dataclass(frozen=True)
class Result:
    """A finished cell: its measures, the sums of the first task, and what else is known of it, by ds."""

    values: Values
    sums: Mapping[str, Mapping[str, Sums]]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a cell's result lies."""

    json: Path

    @staticmethod
    def of(root: Path, *, data: str, cell: str, seed: int, key: str) -> Place:
        """Return the place of a cell."""
        return Place(root / data / cell / f"{seed}-{key}.json")

    @property
    def arrays(self) -> Path:
        """The sums per unit."""
        return self.json.with_suffix(".npz")

    @property
    def is_done(self) -> bool:
        """Whether the cell was finished."""
        return self.json.is_file()

    def write(self, measured: Mapping[str, Mapping[str, Measured]], facts: Mapping[str, Any]) -> None:
        """Keep what was measured, by ds and task; of the first task also the sums."""
        self.json.parent.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for ds, tasks in measured.items():
            first = next(iter(tasks.values()))
            for segment, sums in first.sums.items():
                arrays.update({f"{ds}/{segment}/{name}": array for name, array in asdict(sums).items()})
        draft = self.arrays.with_name(f".{self.arrays.stem}-{os.getpid()}.npz")
        np.savez_compressed(draft, **arrays)
        draft.replace(self.arrays)
        values = {ds: {task: one.values() for task, one in tasks.items()} for ds, tasks in measured.items()}
        replace_file(self.json, json_bytes({"values": values, "facts": dict(facts)}))

    def read(self) -> Result:
        """Read a finished cell."""
        content = json.loads(self.json.read_bytes())
        with np.load(self.arrays) as arrays:
            sums = {
                ds: {
                    segment: Sums(**{name: arrays[f"{ds}/{segment}/{name}"] for name in _FIELDS})
                    for segment in SEGMENTS
                }
                for ds in content["values"]
            }
        return Result(content["values"], sums, content["facts"])
