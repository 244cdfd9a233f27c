"""A real MLflow server on SQLite, of an environment of its own: the whole of mlflow contradicts our constraints."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.environments import environment

REQUIREMENTS = Path(__file__).with_name("requirements-mlflow.txt")
WAIT_S = 180


@dataclass(frozen=True)
class Server:
    """A running server, and where it keeps artifacts."""

    uri: str
    artifacts: Path


@contextmanager
def mlflow_server(scratch: Path) -> Iterator[Server]:
    """Start a server whose files lie under `scratch`, and end it. One that cannot be installed is a failure."""
    python = environment(REQUIREMENTS, name="mlflow", beside_ours=True)
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", scratch / "artifacts")
    stores = ["--backend-store-uri", f"sqlite:///{scratch}/mlflow.db", "--artifacts-destination", str(server.artifacts)]
    command = [str(python), "-m", "mlflow", "server", *stores, "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (scratch / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1"],
            cwd=scratch, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_for(server, process, scratch / "server.log")
            yield server
        finally:
            os.killpg(process.pid, 15)
            process.wait(timeout=30)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.uri}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"the MLflow server did not come up:\n{log.read_text()}")
