"""Environments of their own for rivals whose requirements contradict ours: built once, under `var/benchmarks`."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from typing import Final

from filelock import FileLock

from gesr_core.config import PROJECT_ROOT
from gesr_core.content import sha256_of
from gesr_core.errors import GesrError

log = logging.getLogger("benchmarks")

ROOT: Final = PROJECT_ROOT / "var/benchmarks"


def environment(requirements: Path, *, name: str, beside_ours: bool = False) -> Path:
    """Return the Python of an environment; one whose requirements changed, or ours beside them, is built again.

    Args:
        requirements: what pip is to install.
        name: of its folder, for people.
        beside_ours: it also sees the packages of the environment that this process runs in, behind its own.

    Raises:
        GesrError: pip could not build it.
    """
    key = sha256_of(requirements)
    if beside_ours:
        # What pip leaves out because ours has it follows from what ours has.
        ours = sorted(f"{found.metadata['Name']}=={found.version}" for found in metadata.distributions())
        key = hashlib.sha256("\n".join([key, sys.version, *ours]).encode()).hexdigest()
    folder = ROOT / f"{name}-{key[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may ask at once, and on a new machine none finds it.
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").is_file():
            _build(folder, requirements, beside_ours=beside_ours)
    return folder / "bin/python"


def _build(folder: Path, requirements: Path, *, beside_ours: bool) -> None:
    log.info("building an environment from %s", requirements.name)
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin/python")
    if beside_ours:
        asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        theirs = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        (Path(theirs) / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    command = [python, "-m", "pip", "install", "--quiet", "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GesrError(f"cannot install {requirements.name}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    (folder / "complete").touch()
