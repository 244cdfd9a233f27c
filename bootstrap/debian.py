"""What the system's own packages can bring where we are root on a Debian-like system. Standard library only."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from bootstrap.missing import Missing, run_logged


def can_install(python: str = "/usr/bin/python3") -> bool:
    """Whether apt-get can be used, and serves `python`, which only the system's own Python is."""
    systems_own = Path(python).resolve().parent == Path("/usr/bin")
    return systems_own and os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: Sequence[str], *, log: Path) -> bool:
    """Install system packages; False where that failed, so that the caller's own line says what is missing."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            run_logged(["apt-get", "-q", *words], log=log, what="apt-get", remedy="", env=env)
    except Missing:
        return False
    return True
