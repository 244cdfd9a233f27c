"""score_daily under SIGKILL, SIGSTOP and a rival: whole processes on a toy day; each fault is asserted to have been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession, functions as F

from gesr_core.config import TableRef
from gesr_core.failpoints import VARIABLE
from gesr_core.io.tables import read_table, table_version
from gesr_core.names import Role
from gesr_core.sink import publish as publish_module
from jobs import score_daily, update_histories
from tests import processes
from tests.processes import finish, wait_until_stopped, wake
from tests.toy import DS, Toy, toy_candidates, toy_config, write_rows, write_toy_checkpoint

pytestmark = [pytest.mark.spark, pytest.mark.slow]

OLDER_DS = "2024-03-09"
# Some candidates are none of the catalogue's: there is something to quarantine.
CANDIDATES = [
    (ds, user, [(item if (user + item) % 20 else 900 + item, *rest) for item, *rest in retrieved])
    for ds, user, retrieved in toy_candidates()
]
_RANDOM = random.Random(20)


def _later(name: str) -> str:
    """A moment after a point, in the middle of what comes next."""
    return f"{name}+{_RANDOM.randrange(30, 500)}"


# A chain is one replacement of a day, started again after every kill; each start goes on where the one before was
# killed, so that its first wave is the day's next. Two chains run side by side, each in a world of its own.
SCORING = ("opened", "staged_wave_1", "after_wave_1", "staged_wave_1", "after_wave_1")
CHAINS = {
    "scoring": (SCORING, tuple(map(_later, SCORING))),
    "publishing": (
        ("after_wave_3", "before_publish", "published", "quarantined", "recorded"),
        (
            _later("before_publish"), _later("before_publish"), "after_publish", _later("quarantined"),
            _later("published"),
        ),
    ),
}  # fmt: skip
AFTER_THE_COMMIT = ("published", "after_publish", "quarantined")


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy.build(spark_session, tmp_path_factory.mktemp("toy"), candidates=CANDIDATES)


@pytest.fixture(scope="module")
def undisturbed(toy: Toy, spark_session: SparkSession) -> list[tuple[Any, ...]]:
    """The rows that a run without any fault publishes."""
    score_daily.main(toy.args(target="scores_undisturbed"))
    return published(spark_session, toy, "scores_undisturbed")


def start(toy: Toy, target: str, failpoint: str = "", **options: Any) -> subprocess.Popen[str]:
    return processes.start("score_daily", toy.args(target=target, **options), scratch=toy.root, failpoint=failpoint)


def published(spark: SparkSession, toy: Toy, target: str) -> list[tuple[Any, ...]]:
    rows = read_table(spark, toy.config.table(Role.SCORES, target=target))
    return sorted(tuple(row) for row in rows.drop("run_id", "generation").collect())


def ledger(spark: SparkSession, toy: Toy, target: str, kind: str) -> list[Any]:
    rows = read_table(spark, toy.config.table(Role.LEDGER)).where(f"target = '{target}' AND kind = '{kind}'")
    return sorted(rows.collect(), key=lambda row: row["recorded_at"])


def commits_that_replaced(spark: SparkSession, toy: Toy, target: str) -> int:
    history = DeltaTable.forPath(spark, toy.config.table(Role.SCORES, target=target).location).history()
    return history.where("operation = 'WRITE'").count()


def count(spark: SparkSession, toy: Toy, role: Role, where: str) -> int:
    return read_table(spark, toy.config.table(role)).where(where).count()


class Reader:
    """Reads a day of a table over and over, with another engine, and keeps every content that it saw."""

    def __init__(self, ref: TableRef) -> None:
        self.location, self.reads = ref.location, 0
        self.seen: set[str] = set()
        self.failed: list[Exception] = []
        self._end = threading.Event()

    def read(self) -> str:
        # Not skipped where it is missing: twenty tests would pass in silence.
        import deltalake

        table = deltalake.DeltaTable(self.location).to_pyarrow_table(columns=["ds", "user_id", "ranked"])
        rows = table.to_pylist()
        return repr(sorted((row["user_id"], repr(row["ranked"])) for row in rows if row["ds"] == DS))

    def _loop(self) -> None:
        # Not without a pause: it shares two cores with what it watches.
        while not self._end.wait(0.1):
            try:
                self.seen.add(self.read())
                self.reads += 1
            except Exception as err:
                self.failed.append(err)
                return

    @contextmanager
    def reading(self) -> Iterator[None]:
        thread = threading.Thread(target=self._loop)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()


@dataclass(frozen=True)
class Champions:
    """A world in which two checkpoints published, each to its target, and the rows that each has."""

    toy: Toy
    rows: Mapping[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def champions(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Champions:
    toy, rows = Toy.build(spark_session, tmp_path_factory.mktemp("champions"), candidates=CANDIDATES), {}
    for seed, target in ((11, "scores_killed"), (12, "scores_other")):
        checkpoint = write_toy_checkpoint(toy.config, seed=seed).name
        toy.export_items()
        score_daily.main(toy.args(target=target, checkpoint=f"gesr/{checkpoint}"))
        rows[checkpoint] = published(spark_session, toy, target)
    return Champions(toy, rows)


class Replacement:
    """A replacement of the day by the other model, however often its runs are killed."""

    target = "scores_killed"
    # A session has one set of settings: what runs in this process takes turns.
    _turn = threading.Lock()

    def __init__(self, spark: SparkSession, toy: Toy, rows: Mapping[str, list[tuple[Any, ...]]]) -> None:
        self.spark, self.toy = spark, toy
        self.ref = toy.config.table(Role.SCORES, target=self.target)
        standing = read_table(spark, self.ref).select("model_version").distinct().collect()
        [other] = set(rows) - {row["model_version"] for row in standing}
        self.expected, self.checkpoint = rows[other], f"gesr/{other}"
        self.old, self.seen = Reader(self.ref).read(), set[str]()
        self.before = self.counts()

    def counts(self) -> dict[str, int]:
        rows = read_table(self.spark, self.toy.config.table(Role.LEDGER)).where(f"target = '{self.target}'")
        return {row["kind"]: row["count"] for row in rows.groupBy("kind").count().collect()}

    def new(self, kind: str) -> int:
        return self.counts().get(kind, 0) - self.before.get(kind, 0)

    @property
    def stands(self) -> bool:
        return published(self.spark, self.toy, self.target) == self.expected

    @property
    def said(self) -> bool:
        return self.new("run_published") > 0

    def kill(self, point: str) -> None:
        """Start it, or go on with it, and see it die at a point."""
        reader = Reader(self.ref)
        with reader.reading():
            killed = finish(start(self.toy, self.target, f"{point}:kill", checkpoint=self.checkpoint, replace=True))
        assert killed.killed, f"{point}\n{killed.log}"
        assert not reader.failed
        assert reader.reads > 10
        self.seen |= reader.seen

    def end(self) -> None:
        """Start it once more, undisturbed, and see that nothing was lost, doubled or halved."""
        with self._turn:
            # Where it has said so itself, the same command would replace it once more.
            score_daily.main(self.toy.args(target=self.target, checkpoint=self.checkpoint, replace=not self.said))
        assert self.stands
        assert self.seen <= {self.old, Reader(self.ref).read()}, "a reader saw something between"
        assert self.new("shard_accepted") == self.toy.config.scoring.shards, "only what was missing is scored"
        assert self.new("gate_passed") == self.new("run_published") == 1, "nothing is recorded twice"
        [winner] = read_table(self.spark, self.ref).select("run_id").distinct().collect()
        rejected = sum(item > 900 for _, _, retrieved in CANDIDATES for item, *_ in retrieved)
        assert count(self.spark, self.toy, Role.QUARANTINE, f"run_id = '{winner['run_id']}'") == rejected > 0


def survive(spark: SparkSession, champions: Champions, root: Path, points: Sequence[str]) -> None:
    """Kill replacements of the day at these points, one after the other."""
    shutil.copytree(champions.toy.root, root)
    toy = Toy(root, toy_config(root))
    replacement: Replacement | None = None
    for point, following in zip(points, [*points[1:], None], strict=True):
        if replacement is None:
            replacement = Replacement(spark, toy, champions.rows)
        replacement.kill(point)
        # What has published is not scored again by the same command: it can be killed while it finishes, no earlier.
        goes_on = following is not None and (
            not replacement.stands or following.startswith(("quarantined", "recorded"))
        )
        if replacement.said or not goes_on:
            replacement.end()
            replacement = None


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("moment", CHAINS)
def test_runs_killed_anywhere_leave_readers_the_old_or_the_new_day_and_are_resumed_to_the_same_bits(
    spark: SparkSession, champions: Champions, tmp_path: Path, moment: str
) -> None:
    with ThreadPoolExecutor(2) as pool:
        chains = [
            pool.submit(survive, spark, champions, tmp_path / str(number), points)
            for number, points in enumerate(CHAINS[moment])
        ]
    for chain in chains:
        chain.result()


def test_the_points_are_as_many_as_were_promised() -> None:
    points = [point for chains in CHAINS.values() for chain in chains for point in chain]
    assert len(points) == 20
    assert sum(point in AFTER_THE_COMMIT for point in points) >= 3


def test_a_publication_whose_answer_was_lost_is_recognised(
    toy: Toy,
    spark: SparkSession,
    undisturbed: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(VARIABLE, "published:lose")
    score_daily.main(toy.args(target="scores_unheard"))
    assert "stands, though its answer was lost (ConnectionResetError" in caplog.text
    assert published(spark, toy, "scores_unheard") == undisturbed
    assert commits_that_replaced(spark, toy, "scores_unheard") == 1


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
    score_daily.main(toy.args(target="scores_sleep"))
    rows = read_table(spark, toy.config.table(Role.SCORES, target="scores_sleep"))
    [winner] = rows.select("run_id").distinct().collect()
    version = table_version(spark, toy.config.table(Role.SCORES, target="scores_sleep"))
    woken = wake(sleeper)
    assert woken.code == 5, woken.log
    assert f"holds run {winner['run_id']}" in woken.log
    assert table_version(spark, toy.config.table(Role.SCORES, target="scores_sleep")) == version
    assert published(spark, toy, "scores_sleep") == undisturbed


def test_a_run_that_slept_through_a_replacement_changes_nothing_when_it_wakes(toy: Toy, spark: SparkSession) -> None:
    target, ref = "scores_slept", toy.config.table(Role.SCORES, target="scores_slept")
    score_daily.main(toy.args(target=target))
    sleeper = start(toy, target, "before_publish:stop", replace=True)
    wait_until_stopped(sleeper)
    # A correction: a user's candidates are others now.
    write_rows(spark, toy.config, Role.CANDIDATES, [(DS, 3, [(2, "own", 0.9)])])
    try:
        score_daily.main(toy.args(target=target, replace=True))
        corrected, version = published(spark, toy, target), table_version(spark, ref)
        woken = wake(sleeper)
    finally:
        DeltaTable.forPath(spark, toy.config.table(Role.CANDIDATES).location).restoreToVersion(1)
    assert woken.code == 5, woken.log
    assert published(spark, toy, target) == corrected
    assert table_version(spark, ref) == version


def test_two_days_at_once_both_land_on_the_very_first_night_with_the_histories_of_their_days(
    spark: SparkSession, tmp_path: Path
) -> None:
    first_night = Toy.build(spark, tmp_path)
    write_rows(spark, first_night.config, Role.CANDIDATES, [(OLDER_DS, *rest) for _, *rest in toy_candidates()])
    # Older than the newest histories: they are built beside those.
    update_histories.main(first_night.args(ds=OLDER_DS, target=None))
    first_night.export_items(ds=OLDER_DS)
    runs = [start(first_night, "scores", "before_publish:stop", ds=ds) for ds in (DS, OLDER_DS)]
    for process in runs:
        wait_until_stopped(process)
    for process in runs:
        os.kill(process.pid, signal.SIGCONT)
    for done in [finish(process) for process in runs]:
        assert done.code == 0, done.log
    both = read_table(spark, first_night.config.table(Role.SCORES)).groupBy("ds").count().collect()
    assert {row["ds"]: row["count"] for row in both} == {DS: 24, OLDER_DS: 24}
    # Alone, the older day has the same rows.
    score_daily.main(first_night.args(ds=OLDER_DS, target="scores_alone"))
    alone = read_table(spark, first_night.config.table(Role.SCORES, target="scores_alone"))
    together = read_table(spark, first_night.config.table(Role.SCORES)).where(F.col("ds") == OLDER_DS)
    assert sorted(together.select("user_id", "ranked").collect()) == sorted(alone.select("user_id", "ranked").collect())


def slow_yes(_: Any) -> bool:
    time.sleep(0.3)
    return True


def test_a_compaction_in_the_middle_of_a_publication_costs_it_a_second_try(
    toy: Toy, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    target, ref = "scores_compacted", toy.config.table(Role.SCORES, target="scores_compacted")
    score_daily.main(toy.args("scoring.output_files=2", target=target))
    score_rows = publish_module.score_rows
    slowly = F.udf(slow_yes, "boolean").asNondeterministic()

    def slow_rows(*args: Any, **kwargs: Any) -> Any:
        # One task: the compaction needs a slot too.
        return score_rows(*args, **kwargs).coalesce(1).where(slowly("user_id"))

    monkeypatch.setattr(publish_module, "score_rows", slow_rows)
    removed = []

    def compact() -> None:
        # Once the publication has begun.
        while "gate passed" not in caplog.text:
            time.sleep(0.05)
        time.sleep(1.5)
        done = DeltaTable.forPath(spark, ref.location).optimize().executeCompaction().select("metrics").collect()
        removed.append(done[0]["metrics"]["numFilesRemoved"])

    caplog.clear()
    compaction = threading.Thread(target=compact)
    compaction.start()
    score_daily.main(toy.args(target=target, replace=True))
    compaction.join()
    assert removed == [2], "the compaction rewrote the day's two files"
    assert "a concurrent commit got in the way" in caplog.text
    generations = read_table(spark, ref).select("generation").distinct().collect()
    assert [row["generation"] for row in generations] == [2]
