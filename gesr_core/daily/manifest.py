"""The manifest of a publication: everything that a replay needs to give the same table again. Driver only."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any

from gesr_core.config import Config
from gesr_core.daily.pinning import Pinned
from gesr_core.sink.run import Run
from gesr_core.sink.work import Work


def manifest_of(run: Run, pinned: Pinned, *, config: Config, work: Work, gate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest, as JSON has it."""
    manifest = {
        "form": "gesr.scores",
        "ds": run.ds,
        "target": run.target,
        "run_id": run.run_id,
        "resumes": run.resumes,
        "generation": run.generation + 1,
        "pins": run.pins.to_json(),
        "configuration": config.scoring_settings(),
        "plan": vars(pinned.task.settings),
        "shards": config.scoring.shards,
        "work": work.to_json(),
        "gate": gate,
        # The driver's; of the workers the devices stand in `work`.
        "machine": platform.machine(),
    }
    return dict(json.loads(json.dumps(manifest)))
