"""What Spark runs twice, or loses and runs again, gives the same table: copies, workers, executors, shuffle files.

The mechanism is Spark's and Delta's: of a task's attempts one commits, and its files alone are named in the log. With a
plain append by each attempt in its place (tests/mechanisms.py) rows are doubled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from gesr_core.io.tables import read_table
from gesr_core.names import Role
from jobs import score_daily
from tests.cluster import Cluster, run_job, standalone_cluster
from tests.faulty import LOSSES, recorded
from tests.toy import USERS, Toy

pytestmark = [pytest.mark.spark, pytest.mark.slow]

SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "200ms",
    "spark.speculation.multiplier": "1.2",
    "spark.speculation.quantile": "0.5",
    "spark.speculation.minTaskRuntime": "500ms",
    # Else a task is compared with what others took for as many rows.
    "spark.speculation.efficiency.enabled": "false",
}
ONE_WAVE = "scoring.shards_per_wave=6"


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    world = Toy.build(spark_session, tmp_path_factory.mktemp("toy"))
    score_daily.main(world.args())
    return world


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def ranked(spark: SparkSession, toy: Toy, target: str) -> list[Any]:
    rows = read_table(spark, toy.config.table(Role.SCORES, target=target))
    return sorted(rows.select("user_id", "ranked").collect())


def test_a_speculative_copy_never_doubles_a_row(
    cluster: Cluster, toy: Toy, spark: SparkSession, tmp_path: Path
) -> None:
    command = ["-m", "tests.faulty", "slow", str(tmp_path)]
    code, log = cluster.run(command, toy, ONE_WAVE, target="scores_copied", keys=SPECULATION)
    assert code == 0, log
    attempts = recorded(tmp_path)
    of_first = [note for note in attempts if note["what"] == "scored" and note["partition"] == 0]
    assert {note["attempt"] for note in of_first} == {0, 1}, "a copy ran"
    assert sum(note.get("rows", 0) for note in attempts) > USERS, "both had all rows to write"
    assert ranked(spark, toy, "scores_copied") == ranked(spark, toy, "scores")


def test_what_is_lost_is_run_again_to_the_same_table(toy: Toy, spark: SparkSession, tmp_path: Path) -> None:
    keys = {"spark.master": "local-cluster[2,1,700]", "spark.executor.memory": "700m"}
    command = ["-m", "tests.faulty", "losses", str(tmp_path)]
    code, log = run_job(keys, command, toy, "scoring.shards_per_wave=1", target="scores_lost", scratch=tmp_path)
    assert code == 0, log
    notes = recorded(tmp_path)
    for loss in LOSSES:
        [met] = [note for note in notes if note["what"] == loss]
        scored = [note for note in notes if note["what"] == "scored" and note["stage"] == met["stage"]]
        assert any(note["pid"] != met["pid"] for note in scored), f"{loss}: another process ran the task again"
    assert [note for note in notes if note["what"] == "removed"], "there were shuffle files to lose"
    assert ranked(spark, toy, "scores_lost") == ranked(spark, toy, "scores")


def test_memory_that_runs_out_at_seeded_calls_changes_rounding_alone(
    toy: Toy, spark: SparkSession, tmp_path: Path
) -> None:
    command = ["-m", "tests.faulty", "out_of_memory", str(tmp_path)]
    code, log = run_job({}, command, toy, target="scores_short", scratch=tmp_path)
    assert code == 0, log
    assert "micro-batches halved for want of memory" in log
    for (user, pairs), (other, exact) in zip(
        ranked(spark, toy, "scores_short"), ranked(spark, toy, "scores"), strict=True
    ):
        assert user == other
        assert [p["score"] for p in pairs] == pytest.approx([p["score"] for p in exact], rel=5e-5, abs=5e-5)
