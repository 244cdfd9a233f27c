"""What crosses to a Spark Python worker: which checkpoint, which item states, which settings. No JVM, no pyspark.

A worker process keeps the scorers it has built, by content, so that a reused worker loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import torch

from gesr_core.errors import InputError
from gesr_core.runtime.device import choose_device
from gesr_core.runtime.item_states import load_item_states
from gesr_core.runtime.scorer import Scorer, ScorerSettings
from gesr_core.training.checkpoint import load_checkpoint

# A worker scores one run after another: the newest two cover a run and the one that it compares itself with.
_KEPT: Final = 2
_scorers: dict[ScoreShards, Scorer] = {}


@dataclass(frozen=True)
class ScoreShards:
    """Scores the request rows of a partition; small, hashable, and picklable by reference.

    Paths must be seen by every executor under the same name; the ids are checked against what lies there.
    """

    checkpoint: str
    checkpoint_id: str
    item_states: str
    items_version: str
    settings: ScorerSettings
    device: str
    threads: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Map request rows, sorted by (shard, user, request), to one score row per user."""
        return cached_scorer(self).score(batches)


def cached_scorer(task: ScoreShards) -> Scorer:
    """Return this process's scorer for the task, built at first use."""
    scorer = _scorers.pop(task, None) or build_scorer(task)
    _scorers[task] = scorer
    while len(_scorers) > _KEPT:
        _scorers.pop(next(iter(_scorers)))
    return scorer


def build_scorer(task: ScoreShards) -> Scorer:
    """Load checkpoint and item states and check that they are those that the driver pinned.

    Raises:
        InputError: they are missing, altered, or others than the pinned ones.
    """
    # Spark runs one Python worker per task slot: more threads each would only fight over the cores.
    torch.set_num_threads(task.threads)
    checkpoint = load_checkpoint(Path(task.checkpoint))
    states = load_item_states(Path(task.item_states), verify=False)
    found = (checkpoint.checkpoint_id, states.items_version)
    if found != (task.checkpoint_id, task.items_version):
        raise InputError(
            f"{task.checkpoint} and {task.item_states} hold {found}, but the run pinned "
            f"{(task.checkpoint_id, task.items_version)}; they changed under the run"
        )
    return Scorer(
        checkpoint.build(),
        items=states.items,
        index=states.index,
        encode_users=checkpoint.features.encode_users,
        actions=checkpoint.features.actions,
        settings=task.settings,
        device=choose_device(task.device),
    )
