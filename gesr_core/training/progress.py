"""How far a pass over the requests is, for a person who waits. Runs anywhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

from tqdm import tqdm

log = logging.getLogger("train")

_LOG_EVERY_S: Final = 10.0


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, name: str, *, requests: int, shown: bool) -> None:
        self.name, self.requests, self.done = name, requests, 0
        self.bar = tqdm(total=requests, desc=name, unit="req", leave=False, disable=not (shown and sys.stderr.isatty()))
        self.said_s = self.started_s = time.monotonic()

    def advance(self, requests: int, *, loss: float) -> None:
        """Count requests as done."""
        self.done += requests
        self.bar.update(requests)
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        now_s = time.monotonic()
        if self.bar.disable and now_s - self.said_s >= _LOG_EVERY_S:
            self.said_s = now_s
            rate = self.done / (now_s - self.started_s)
            log.info(
                "%s: %d of %d requests, %.0f/s, loss %.4f, %.0f s left",
                self.name,
                self.done,
                self.requests,
                rate,
                loss,
                (self.requests - self.done) / rate,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
