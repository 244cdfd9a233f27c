"""Prepare one data set in a process of its own, which gives the JVM's memory back: `... prepare DATA [--quick]`."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.quality import ml_100k, ta_feng
from benchmarks.quality.prepared import Prepared, open_prepared
from gesr_core.config import PROJECT_ROOT
from gesr_core.errors import GesrError

PREPARE: Final[Mapping[str, Callable[..., Path]]] = {
    ta_feng.NAME: ta_feng.prepare,
    ml_100k.NAME: ml_100k.prepare,
}


def prepared_apart(data: str, *, quick: bool) -> Prepared:
    """Prepare in a process of its own, and open what it prepared.

    Raises:
        GesrError: it could not be prepared; why stands on stderr.
    """
    command = [sys.executable, "-m", "benchmarks.quality.prepare", data, *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise GesrError(f"{data} could not be prepared: see above")
    return open_prepared(Path(done.stdout.strip().splitlines()[-1]))


def main(argv: Sequence[str]) -> None:
    """Print the prepared folder, which is built unless it is there."""
    print(PREPARE[argv[0]](quick="--quick" in argv[1:]))


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    for chatty in ("py4j", "pyspark"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    main(sys.argv[1:])
