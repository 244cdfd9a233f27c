"""A pinned wheel: kept, refused when altered, and clear when it cannot be had."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from gesr_core.errors import GesrError, InputError
from gesr_core.samples.download import PinnedWheel, fetch_wheel

CONTENT = b"a wheel"
WHEEL = PinnedWheel("some-package", "1.0", "some_package-1.0-py3-none-any.whl", hashlib.sha256(CONTENT).hexdigest())


def test_a_kept_wheel_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    (tmp_path / WHEEL.file_name).write_bytes(CONTENT)
    assert fetch_wheel(WHEEL, folder=tmp_path) == tmp_path / WHEEL.file_name


def test_an_altered_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / WHEEL.file_name).write_bytes(CONTENT + b"!")
    with pytest.raises(InputError, match=f"has SHA-256 .*, expected {WHEEL.sha256}: refused; delete it and run again"):
        fetch_wheel(WHEEL, folder=tmp_path)


def test_no_network_is_said_in_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_index(monkeypatch, tmp_path)
    with pytest.raises(GesrError, match=r"cannot download some-package 1.0: is the package index reachable") as raised:
        fetch_wheel(WHEEL, folder=tmp_path / "downloads")
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1
    assert list((tmp_path / "downloads").iterdir()) == []


def test_another_file_under_the_pinned_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_index(monkeypatch, tmp_path)
    served = tmp_path / "served"
    served.mkdir()
    _write_wheel(served / WHEEL.file_name)
    monkeypatch.setenv("PIP_FIND_LINKS", str(served))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"the package index serves another some-package 1.0 than the pinned one"):
        fetch_wheel(WHEEL, folder=tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "downloads").write_text("a file where the folder should be")
    with pytest.raises(GesrError, match=r"cannot write the download to .*: File exists"):
        fetch_wheel(WHEEL, folder=tmp_path / "downloads")


def _without_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    # Port 9 (discard) refuses at once; no retries, or pip waits for each of them.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))


def _write_wheel(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            "some_package-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n"
        )
        wheel.writestr("some_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("some_package-1.0.dist-info/RECORD", "")
