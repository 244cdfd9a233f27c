"""Progress of a run on the log: shards done, pairs, pairs per second, time left. Driver only."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from gesr_core.sink.staging import ShardCounts

log = logging.getLogger(__name__)


class Progress:
    """Counts what waves finished; the time left is estimated from the users, of which each shard has about as many."""

    def __init__(self, *, shards: int, done: int) -> None:
        self.shards, self.done, self.scored_here = shards, done, 0
        self.pairs = 0
        self.started_s = time.monotonic()

    def wave_done(self, shards: int, counts: Mapping[int, ShardCounts]) -> None:
        """Add a wave of `shards` shards and log a line."""
        self.done += shards
        self.scored_here += shards
        self.pairs += sum(c.candidates_scored for c in counts.values())
        left_s = (self.shards - self.done) * self.elapsed_s / self.scored_here
        log.info(
            "shards %d/%d, %s pairs scored, %s pairs/s, about %.0f s left",
            self.done,
            self.shards,
            f"{self.pairs:,}",
            f"{self.pairs / self.elapsed_s:,.0f}",
            left_s,
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first shard."""
        return max(time.monotonic() - self.started_s, 1e-9)
