"""A standalone Spark master with two workers on this machine, each under a host name of its own."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyspark
import pytest

from tests.spark_keys import toy_spark_keys
from tests.toy import Toy

ROOT = Path(__file__).parents[1]
HOSTS = ("127.0.0.1", "127.0.0.2")
WAIT_S = 480
DISCOVERY = """#!/bin/sh
echo '{"name": "gpu", "addresses": ["0", "7"]}'
"""


@dataclass(frozen=True)
class Cluster:
    """A running master, and a folder for what runs on it; each worker has two GPUs, which are made up."""

    url: str
    scratch: Path

    @property
    def discovery(self) -> str:
        return str(self.scratch / "gpus.sh")

    def run(
        self, command: Sequence[str], toy: Toy, *overrides: str, target: str, keys: Mapping[str, str]
    ) -> tuple[int, str]:
        """Run a job on the cluster; return its exit code and its log."""
        of_cluster = {"spark.master": self.url, "spark.executor.memory": "600m", "spark.executor.cores": "2"}
        return run_job({**of_cluster, **keys}, command, toy, *overrides, target=target, scratch=self.scratch)


def run_job(
    keys: Mapping[str, str], command: Sequence[str], toy: Toy, *overrides: str, target: str, scratch: Path
) -> tuple[int, str]:
    """Run a job with Spark keys of its own; return its exit code and its log."""
    spark = json.dumps({**toy_spark_keys(scratch), **keys})
    done = subprocess.run(
        [sys.executable, *command, *toy.args(*overrides, f"spark={spark}", target=target)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, "SPARK_HOME": str(_home())},
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def standalone_cluster(scratch: Path) -> Iterator[Cluster]:
    """Start master and workers, and end them."""
    port = _free_port()
    made = Cluster(f"spark://{HOSTS[0]}:{port}", scratch)
    script = Path(made.discovery)
    script.write_text(DISCOVERY)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    processes = [_start(made, "master.Master", "--host", HOSTS[0], "--port", str(port))]
    try:
        _wait_for(port)
        for host in HOSTS:
            folder = str(made.scratch / host)
            sizes = ("--cores", "2", "--memory", "1g", "--work-dir", folder)
            processes.append(_start(made, "worker.Worker", "--host", host, *sizes, made.url))
        yield made
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _home() -> Path:
    return Path(pyspark.__file__).parent


def _start(cluster: Cluster, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
    keys = {"amount": 2, "discoveryScript": cluster.discovery}
    environment = {
        **os.environ,
        "SPARK_HOME": str(_home()),
        "SPARK_LOCAL_IP": HOSTS[0],
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_WORKER_OPTS": " ".join(f"-Dspark.worker.resource.gpu.{key}={value}" for key, value in keys.items()),
    }
    command = [str(_home() / "bin/spark-class"), f"org.apache.spark.deploy.{kind}", *arguments, "--webui-port", "0"]
    with (cluster.scratch / "daemons.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, cwd=cluster.scratch, stdout=log, stderr=log)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOSTS[0], 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((HOSTS[0], port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("the master never came up")
