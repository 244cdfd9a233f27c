"""score_daily with a task that meets a fault: memory runs out, a device breaks, a process dies, one is slow.

`python -m tests.faulty FAULT FOLDER <score_daily's arguments>`; executors import the task from here. What happened is
recorded in the folder, so that a test can assert that it did.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from pyspark import TaskContext

from gesr_core.daily import pinning
from gesr_core.entry import run_job
from gesr_core.names import Col
from gesr_core.runtime.scorer import Scorer
from gesr_core.runtime.worker import ScoreShards, task_scorer
from jobs import score_daily

SLOW_S = 90.0
LOSSES = ("worker_dies", "executor_dies", "shuffle_lost", "broken_device")


@dataclass(frozen=True)
class Faulty(ScoreShards):
    """Scores as any task does, but for its fault.

    - `out_of_memory`: seeded calls of the model fail for want of memory, where there are requests to halve.
    - `losses`: one after the other, each in a wave of its own, an attempt that has scored its rows takes its worker
      along, its executor, the files of the newest shuffle; in the wave after that the device breaks.
    - `slow`: the first attempt of the first partition has scored everything, and then does not end for long.
    - `wrong_score`: one score is off by one bit.
    """

    fault: str = ""
    folder: str = ""

    def __call__(self, batches: Iterator[pa.RecordBatch], *, gpu: str | None = None) -> Iterator[pa.RecordBatch]:
        fault = self.next_loss() if self.fault == "losses" else self.fault
        if fault in ("out_of_memory", "broken_device"):
            scorer = task_scorer(self, gpu=gpu)
            if fault == "broken_device":
                fail_at_random(scorer, error=self.broken)
            elif not self.halved:
                fail_at_random(scorer, error=lambda: torch.OutOfMemoryError("out of memory, as the test wants it"))
            yield from scorer.score(batches)
            return
        scored = list(ScoreShards.__call__(self, batches, gpu=gpu))
        if fault == "wrong_score":
            scored = [off_by_a_bit(batch) for batch in scored]
        if self.folder:
            self.note("scored", rows=sum(batch.num_rows for batch in scored))
        if fault == "slow":
            self.be_slow()
        elif fault in LOSSES:
            self.lose(fault)
        yield from scored

    def be_slow(self) -> None:
        context = TaskContext.get()
        assert context is not None
        if context.partitionId() == 0:
            time.sleep(0.0 if context.attemptNumber() else SLOW_S)
            return
        # Spark copies the first once others have ended: not before it has scored everything.
        while not any(note["partition"] == 0 for note in recorded(Path(self.folder))):
            time.sleep(0.1)

    def lose(self, loss: str) -> None:
        self.note(loss)
        if loss == "shuffle_lost":
            for path in shuffle_files():
                path.unlink()
                self.note("removed")
        # A Python worker's parent is the daemon that forked it; the daemon's is the executor's JVM.
        os.kill(jvm_pid() if loss == "executor_dies" else os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def broken(self) -> Exception:
        self.note("broken_device")
        return RuntimeError("CUDA error: an illegal memory access was encountered, as the test wants it")

    def next_loss(self) -> str:
        """Return the next of LOSSES to the first attempt of a stage, nothing to all others, also those of its rerun."""
        context = TaskContext.get()
        assert context is not None
        stage = str(context.stageId())
        claim = Path(self.folder) / f"{uuid.uuid4().hex}.claim"
        claim.write_text(stage)
        for loss in LOSSES:
            met = Path(self.folder) / loss
            try:
                os.link(claim, met)
                return loss
            except FileExistsError:
                if met.read_text() == stage:
                    return ""
        return ""

    def note(self, what: str, **facts: Any) -> None:
        """Record that something happened in this attempt."""
        context = TaskContext.get()
        assert context is not None
        where = {"stage": context.stageId(), "partition": context.partitionId(), "attempt": context.attemptNumber()}
        draft = Path(self.folder) / f"{uuid.uuid4().hex}.draft"
        draft.write_text(json.dumps({"what": what, "pid": os.getpid(), **where, **facts}))
        draft.rename(draft.with_suffix(".json"))


def fail_at_random(scorer: Scorer, *, error: Callable[[], Exception], seed: int = 7) -> None:
    """Let every second call of the scorer's model fail, by a seed, while it is of more than one request."""
    model, rng = scorer._logits, random.Random(seed)

    def sometimes(history: Any, *args: Any) -> Any:
        if len(history.row_BT) > 1 and rng.random() < 0.5:
            raise error()
        return model(history, *args)

    scorer._logits = sometimes


def off_by_a_bit(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with the first score one bit higher."""
    ranked = batch.column(Col.RANKED)
    fields = ranked.values
    scores = fields.field(Col.SCORE).to_numpy(zero_copy_only=False).copy()
    scores[:1] = np.nextafter(scores[:1], np.float32(np.inf))
    arrays = [pa.array(scores) if f.name == Col.SCORE else fields.field(f.name) for f in fields.type]
    values = pa.StructArray.from_arrays(arrays, names=[f.name for f in fields.type])
    place = batch.schema.get_field_index(Col.RANKED)
    return batch.set_column(place, Col.RANKED, pa.ListArray.from_arrays(ranked.offsets, values))


def shuffle_files() -> list[Path]:
    """Return the files that all executors of this machine have written for the newest shuffle."""
    # An executor's folders lie beside those of the others, in spark.local.dir.
    own = [Path(folder) for folder in os.environ["SPARK_EXECUTOR_DIRS"].split(os.pathsep)]
    found = [path for folder in own for path in folder.parent.parent.rglob("shuffle_*") if path.is_file()]
    newest = max((int(path.name.split("_")[1]) for path in found), default=0)
    return [path for path in found if int(path.name.split("_")[1]) == newest]


def jvm_pid() -> int:
    """Return the process of the executor's JVM."""
    daemon = os.getppid()
    return int(Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1])


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Return what attempts recorded in a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def main(argv: Sequence[str]) -> None:
    """Run score_daily; the first arguments are the fault and the folder to record into."""
    scoring_task = pinning.scoring_task

    def faulty_task(*args: Any, **kwargs: Any) -> ScoreShards:
        return Faulty(**vars(scoring_task(*args, **kwargs)), fault=argv[0], folder=argv[1])

    with mock.patch.object(pinning, "scoring_task", faulty_task):
        score_daily.main(argv[2:])


if __name__ == "__main__":
    # Under its own name, by which executors find the class.
    from tests import faulty

    run_job(faulty.main)
