"""score_daily under SIGKILL, SIGSTOP and a rival: whole processes on a toy day; each fault is asserted to have been."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession

from gesr_core.failpoints import VARIABLE
from gesr_core.io.tables import read_table, table_version
from gesr_core.names import Role
from tests.spark_keys import toy_spark_keys
from tests.toy import Toy

pytestmark = [pytest.mark.spark, pytest.mark.slow]

JOB = Path(__file__).parents[2] / "jobs" / "score_daily.py"
WAIT_S = 240


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy.build(spark_session, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def undisturbed(toy: Toy, spark_session: SparkSession) -> list[tuple[Any, ...]]:
    """The rows that a run without any fault publishes."""
    done = finish(start(toy, "scores_undisturbed"))
    assert done.code == 0, done.log
    return published(spark_session, toy, "scores_undisturbed")


class Done:
    """A process that ended."""

    def __init__(self, code: int, log: str) -> None:
        self.code, self.log = code, log

    @property
    def run_id(self) -> str:
        found = re.search(r"run (\w+) opened", self.log)
        assert found, self.log
        return found.group(1)


def start(toy: Toy, target: str, failpoint: str = "") -> subprocess.Popen[str]:
    """Start the job in a process group of its own, as a scheduler would."""
    environment = {**os.environ, VARIABLE: failpoint, "PYTHONPATH": str(JOB.parents[1])}
    keys = json.dumps(toy_spark_keys(toy.root / "spark"))
    return subprocess.Popen(
        [sys.executable, str(JOB), *toy.args(f"spark={keys}", target=target)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Done:
    try:
        log, _ = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        log, _ = process.communicate()
        pytest.fail(f"the job did not end within {WAIT_S} s:\n{log}")
    return Done(process.returncode, log)


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    pytest.fail("the job never reached its failpoint")


def published(spark: SparkSession, toy: Toy, target: str) -> list[tuple[Any, ...]]:
    rows = read_table(spark, toy.config.table(Role.SCORES, target=target))
    return sorted(tuple(row) for row in rows.drop("run_id").collect())


def ledger(spark: SparkSession, toy: Toy, target: str, kind: str) -> list[Any]:
    rows = read_table(spark, toy.config.table(Role.LEDGER)).where(f"target = '{target}' AND kind = '{kind}'")
    return sorted(rows.collect(), key=lambda row: row["recorded_at"])


def commits_that_replaced(spark: SparkSession, toy: Toy, target: str) -> int:
    history = DeltaTable.forPath(spark, toy.config.table(Role.SCORES, target=target).location).history()
    return history.where("operation = 'WRITE'").count()


@pytest.mark.parametrize(
    ("failpoint", "missing_shards"),
    [("staged_wave_1:kill", 6), ("after_wave_2:kill", 2), ("before_publish:kill", 0)],
)
def test_a_killed_run_is_resumed_to_the_same_bits_and_scores_only_what_is_missing(
    toy: Toy, spark: SparkSession, undisturbed: list[tuple[Any, ...]], failpoint: str, missing_shards: int
) -> None:
    target = f"scores_{failpoint.partition(':')[0]}"
    killed = finish(start(toy, target, failpoint))
    assert killed.code == -signal.SIGKILL, killed.log
    assert published(spark, toy, target) == []
    resumed = finish(start(toy, target))
    assert resumed.code == 0, resumed.log
    assert f"resuming the work of run {killed.run_id}" in resumed.log
    assert f"{missing_shards} of 6 shards to score" in resumed.log
    assert published(spark, toy, target) == undisturbed
    scored = [row["shard"] for row in ledger(spark, toy, target, "shard_accepted") if row["run_id"] == resumed.run_id]
    assert len(scored) == missing_shards


def test_a_publication_whose_run_died_before_its_ledger_row_is_recognised(
    toy: Toy, spark: SparkSession, undisturbed: list[tuple[Any, ...]]
) -> None:
    killed = finish(start(toy, "scores_silent", "after_publish:kill"))
    assert killed.code == -signal.SIGKILL
    assert ledger(spark, toy, "scores_silent", "run_published") == []
    again = finish(start(toy, "scores_silent"))
    assert again.code == 0, again.log
    assert "nothing to do" in again.log
    assert published(spark, toy, "scores_silent") == undisturbed
    assert commits_that_replaced(spark, toy, "scores_silent") == 1
    assert [row["run_id"] for row in ledger(spark, toy, "scores_silent", "run_published")] == [killed.run_id]


def test_of_two_runs_at_once_one_publishes_and_the_other_names_it(
    toy: Toy, spark: SparkSession, undisturbed: list[tuple[Any, ...]]
) -> None:
    first, second = start(toy, "scores_race", "before_publish:stop"), start(toy, "scores_race", "before_publish:stop")
    for process in (first, second):
        wait_until_stopped(process)
    for process in (first, second):
        os.kill(process.pid, signal.SIGCONT)
    ended = [finish(first), finish(second)]
    assert sorted(done.code for done in ended) == [0, 5], "\n".join(done.log for done in ended)
    winner, loser = sorted(ended, key=lambda done: done.code)
    assert f"AnotherRunWon: ds 2024-03-10 of scores_race holds run {winner.run_id}" in loser.log
    assert published(spark, toy, "scores_race") == undisturbed
    assert commits_that_replaced(spark, toy, "scores_race") == 1


def test_a_run_that_slept_before_its_publish_changes_nothing_when_it_wakes(
    toy: Toy, spark: SparkSession, undisturbed: list[tuple[Any, ...]]
) -> None:
    sleeper = start(toy, "scores_sleep", "before_publish:stop")
    wait_until_stopped(sleeper)
    winner = finish(start(toy, "scores_sleep"))
    assert winner.code == 0, winner.log
    version = table_version(spark, toy.config.table(Role.SCORES, target="scores_sleep"))
    os.kill(sleeper.pid, signal.SIGCONT)
    woken = finish(sleeper)
    assert woken.code == 5, woken.log
    assert f"holds run {winner.run_id}" in woken.log
    assert table_version(spark, toy.config.table(Role.SCORES, target="scores_sleep")) == version
    assert published(spark, toy, "scores_sleep") == undisturbed
