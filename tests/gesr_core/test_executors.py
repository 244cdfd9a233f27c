"""GPUs of a cluster: a standalone master and two workers on this machine, each with two GPUs that are made up."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyspark
import pytest
from pyspark.sql import SparkSession

from gesr_core.io.tables import read_table
from gesr_core.names import Role
from tests.spark_keys import toy_spark_keys
from tests.toy import USERS, Toy

pytestmark = [pytest.mark.spark, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
HOSTS = ("127.0.0.1", "127.0.0.2")
WAIT_S = 240
DISCOVERY = """#!/bin/sh
echo '{"name": "gpu", "addresses": ["0", "7"]}'
"""


@dataclass(frozen=True)
class Cluster:
    """A running master, and a folder for what runs on it."""

    url: str
    scratch: Path

    @property
    def discovery(self) -> str:
        return str(self.scratch / "gpus.sh")

    def run(self, command: Sequence[str], toy: Toy, *overrides: str, target: str, gpus: int = 2) -> tuple[int, str]:
        """Run a job on the cluster, whose executors ask for so many GPUs; return its exit code and its log."""
        keys = {
            **toy_spark_keys(self.scratch),
            "spark.master": self.url,
            "spark.executor.memory": "600m",
            "spark.executor.cores": "2",
            "spark.executor.resource.gpu.amount": str(gpus),
            "spark.executor.resource.gpu.discoveryScript": self.discovery,
        }
        done = subprocess.run(
            [sys.executable, *command, *toy.args(*overrides, f"spark={json.dumps(keys)}", target=target)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable},
            cwd=self.scratch,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy.build(spark_session, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port = free_port()
    made = Cluster(f"spark://{HOSTS[0]}:{port}", tmp_path_factory.mktemp("cluster"))
    script = Path(made.discovery)
    script.write_text(DISCOVERY)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    processes = [start(made, "master.Master", "--host", HOSTS[0], "--port", str(port))]
    try:
        wait_for(port)
        for host in HOSTS:
            folder = str(made.scratch / host)
            sizes = ("--cores", "2", "--memory", "1g", "--work-dir", folder)
            processes.append(start(made, "worker.Worker", "--host", host, *sizes, made.url))
        yield made
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start(cluster: Cluster, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
    home = Path(pyspark.__file__).parent
    keys = {"amount": 2, "discoveryScript": cluster.discovery}
    environment = {
        **os.environ,
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": HOSTS[0],
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_WORKER_OPTS": " ".join(f"-Dspark.worker.resource.gpu.{key}={value}" for key, value in keys.items()),
    }
    command = [str(home / "bin/spark-class"), f"org.apache.spark.deploy.{kind}", *arguments, "--webui-port", "0"]
    with (cluster.scratch / "daemons.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, cwd=cluster.scratch, stdout=log, stderr=log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOSTS[0], 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((HOSTS[0], port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("the master never came up")


def test_each_task_uses_the_gpu_that_it_was_granted(cluster: Cluster, toy: Toy, spark_session: SparkSession) -> None:
    records = cluster.scratch / "records"
    records.mkdir()
    # More tasks at once than there are GPUs.
    one_wave = f"scoring.shards_per_wave={toy.config.scoring.shards}"
    code, log = cluster.run(["-m", "tests.granted", str(records)], toy, one_wave, target="scores_granted")
    assert code == 0, log
    used = [json.loads(path.read_text()) for path in records.iterdir()]
    # A task for each shard, over both addresses of both workers.
    assert len(used) >= toy.config.scoring.shards
    assert all(record["granted"] == [record["told"]] for record in used)
    assert {record["told"] for record in used} == {"0", "7"}
    assert len({record["executor"] for record in used}) == 2
    published = read_table(spark_session, toy.config.table(Role.SCORES, target="scores_granted"))
    assert published.count() == USERS


def test_a_gpu_that_torch_does_not_see_ends_the_job_and_is_no_reason_to_use_the_cpu(cluster: Cluster, toy: Toy) -> None:
    code, log = cluster.run(["-m", "jobs.score_daily"], toy, target="scores_unseen")
    assert code == 2, log
    assert "Spark granted GPU" in log.strip().splitlines()[-1]


def test_an_executor_that_never_comes_is_said_after_a_bounded_wait(cluster: Cluster, toy: Toy) -> None:
    wait = "scoring.executor_wait_s=15"
    code, log = cluster.run(["-m", "jobs.score_daily"], toy, wait, target="scores_never", gpus=3)
    assert code == 1, log
    assert "no executor came within 15 s" in log.strip().splitlines()[-1]
    assert "each is to have 3 GPUs" in log.strip().splitlines()[-1]
