"""What a fault test can ask of a process; whole processes, each asserted to have met its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from gesr_core.failpoints import VARIABLE, reach


def test_a_point_that_nobody_asked_for_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    reach("here")
    monkeypatch.setenv(VARIABLE, "there:kill")
    reach("here")


@pytest.mark.parametrize("asked", ["here", "here:sleep", "here+soon:kill", ":kill"])
def test_what_cannot_be_asked_for_is_said(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, asked)
    with pytest.raises(ValueError, match="expected NAME:stop"):
        reach("here")


def test_an_answer_can_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "here:lose")
    with pytest.raises(ConnectionResetError, match="lost at here"):
        reach("here")


@pytest.mark.parametrize(("asked", "delay_s"), [("here:kill", 0.0), ("here+300:kill", 0.3)])
def test_a_process_can_be_killed_at_once_or_a_little_later(asked: str, delay_s: float) -> None:
    code = "import time; from gesr_core.failpoints import reach; reach('here'); print('on'); time.sleep(60)"
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-u", "-c", code],
        env={**os.environ, VARIABLE: asked},
        start_new_session=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert (done.stdout == b"on\n") == (delay_s > 0)
    assert delay_s <= time.monotonic() - started_s < 50
