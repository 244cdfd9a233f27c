"""The environment of the rivals from RecTools."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from benchmarks.quality import external


def test_two_cells_at_once_build_the_environment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.2)
        folder.mkdir()
        (folder / "complete").touch()

    monkeypatch.setattr(external, "ROOT", tmp_path / "new")
    monkeypatch.setattr(external, "_build", build)
    cells = [threading.Thread(target=external.environment) for _ in range(3)]
    for cell in cells:
        cell.start()
    for cell in cells:
        cell.join()
    assert len(built) == 1
    assert external.environment().parent.parent == built[0]
