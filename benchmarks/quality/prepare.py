"""Prepare one data set in a process of its own, which gives the JVM's memory back: `... prepare DATA [--quick]`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.quality import ml_100k, ta_feng

PREPARE: Final[Mapping[str, Callable[..., Path]]] = {
    ta_feng.NAME: ta_feng.prepare,
    ml_100k.NAME: ml_100k.prepare,
}


def main(argv: Sequence[str]) -> None:
    """Print the prepared folder, which is built unless it is there."""
    print(PREPARE[argv[0]](quick="--quick" in argv[1:]))


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    for chatty in ("py4j", "pyspark"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    main(sys.argv[1:])
