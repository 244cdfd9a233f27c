"""score_daily with a task that records which GPU it was told to use: for a cluster whose GPUs are made up.

`python -m tests.granted FOLDER <score_daily's arguments>`; executors import the task from here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pyspark import TaskContext

from gesr_core.daily import pinning
from gesr_core.entry import run_job
from gesr_core.runtime.device import WorkerDevice
from gesr_core.runtime.worker import ScoreShards
from jobs import score_daily


@dataclass(frozen=True)
class Recording(ScoreShards):
    """Writes what Spark granted to the task and what the runtime was told to use, and scores on the CPU."""

    folder: str = ""

    def choose_device(self, gpu: str | None) -> torch.device:
        context = TaskContext.get()
        assert context is not None
        granted = context.resources()["gpu"].addresses
        facts = {"told": gpu, "granted": granted, "executor": os.environ["SPARK_EXECUTOR_DIRS"]}
        (Path(self.folder) / f"{context.taskAttemptId()}.json").write_text(json.dumps(facts))
        return torch.device("cpu")


def main(argv: Sequence[str]) -> None:
    """Run score_daily; the first argument is the folder to record into."""
    scoring_task = pinning.scoring_task

    def recording_task(*args: Any, **kwargs: Any) -> ScoreShards:
        return Recording(**vars(scoring_task(*args, **kwargs)), folder=argv[0])

    # Its probe would look for the GPU, which is made up.
    gpu = WorkerDevice("cuda:0", free_bytes=8 << 30)
    with (
        mock.patch.object(pinning, "scoring_task", recording_task),
        mock.patch.object(pinning, "probe_worker", return_value=gpu),
    ):
        score_daily.main(argv[1:])


if __name__ == "__main__":
    # Under its own name, by which executors find the class.
    from tests import granted

    run_job(granted.main)
