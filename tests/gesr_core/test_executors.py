"""GPUs of a cluster: a standalone master and two workers on this machine, each with two GPUs that are made up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
from pyspark.sql import SparkSession

from gesr_core.io.tables import read_table
from gesr_core.names import Role
from tests.cluster import Cluster, standalone_cluster
from tests.toy import USERS, Toy

pytestmark = [pytest.mark.spark, pytest.mark.slow]


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy.build(spark_session, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def run(
    cluster: Cluster, command: Sequence[str], toy: Toy, *overrides: str, target: str, gpus: int = 2
) -> tuple[int, str]:
    """Run a job whose executors ask for so many GPUs."""
    keys = {
        "spark.executor.resource.gpu.amount": str(gpus),
        "spark.executor.resource.gpu.discoveryScript": cluster.discovery,
    }
    return cluster.run(command, toy, *overrides, target=target, keys=keys)


def test_each_task_uses_the_gpu_that_it_was_granted(cluster: Cluster, toy: Toy, spark_session: SparkSession) -> None:
    records = cluster.scratch / "records"
    records.mkdir()
    # More tasks at once than there are GPUs.
    one_wave = f"scoring.shards_per_wave={toy.config.scoring.shards}"
    code, log = run(cluster, ["-m", "tests.granted", str(records)], toy, one_wave, target="scores_granted")
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
    code, log = run(cluster, ["-m", "jobs.score_daily"], toy, target="scores_unseen")
    assert code == 2, log
    assert "Spark granted GPU" in log.strip().splitlines()[-1]


def test_an_executor_that_never_comes_is_said_after_a_bounded_wait(cluster: Cluster, toy: Toy) -> None:
    wait = "scoring.executor_wait_s=15"
    code, log = run(cluster, ["-m", "jobs.score_daily"], toy, wait, target="scores_never", gpus=3)
    assert code == 1, log
    assert "no executor came within 15 s" in log.strip().splitlines()[-1]
    assert "each is to have 3 GPUs" in log.strip().splitlines()[-1]
