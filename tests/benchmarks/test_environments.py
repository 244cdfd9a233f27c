"""Environments of rivals are built once, whoever asks."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from benchmarks import environments


def test_two_cells_at_once_build_the_environment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("nothing\n")

    def build(folder: Path, requirements: Path, *, beside_ours: bool) -> None:
        built.append(folder)
        time.sleep(0.2)
        folder.mkdir()
        (folder / "complete").touch()

    def ask() -> Path:
        return environments.environment(requirements, name="rival")

    monkeypatch.setattr(environments, "ROOT", tmp_path / "new")
    monkeypatch.setattr(environments, "_build", build)
    cells = [threading.Thread(target=ask) for _ in range(3)]
    for cell in cells:
        cell.start()
    for cell in cells:
        cell.join()
    assert len(built) == 1
    assert ask().parent.parent == built[0]
    requirements.write_text("something else\n")
    assert ask().parent.parent == built[1]
