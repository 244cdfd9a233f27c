"""Jobs as whole processes, to be stopped, killed and watched: each in a process group of its own, as schedulers do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gesr_core.failpoints import VARIABLE
from tests.spark_keys import toy_spark_keys

ROOT = Path(__file__).parents[1]
WAIT_S = 480


class Done:
    """A process that ended."""

    def __init__(self, code: int, log: str) -> None:
        self.code, self.log = code, log

    @property
    def run_id(self) -> str:
        found = re.search(r"run (\w+) opened", self.log)
        assert found, self.log
        return found.group(1)

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def start(job: str, arguments: Sequence[str], *, scratch: Path, failpoint: str = "") -> subprocess.Popen[str]:
    """Start `jobs/<job>.py` with Spark's own files under `scratch`."""
    keys = json.dumps(toy_spark_keys(scratch / "spark"))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments, "--set", f"spark={keys}"],
        env={**os.environ, VARIABLE: failpoint, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for the end."""
    try:
        log, _ = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        log, _ = process.communicate()
        pytest.fail(f"the job did not end within {WAIT_S} s:\n{log}")
    return Done(process.returncode, log)


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    """Wait until the process stopped itself at its failpoint."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    pytest.fail("the job never reached its failpoint")


def wake(process: subprocess.Popen[str]) -> Done:
    """Let a stopped process go on, and wait for its end."""
    os.kill(process.pid, signal.SIGCONT)
    return finish(process)
