"""The other jobs under SIGKILL, SIGSTOP and a rival: what a run left is finished, and of two at once one wins."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.errors import AnotherRunWon, InputError
from gesr_core.failpoints import VARIABLE
from gesr_core.io.tables import read_table, table_version
from gesr_core.names import Role
from gesr_core.runtime.item_states import current_export
from jobs import build_candidates, evaluate, export_items, score_daily, update_histories
from tests import processes
from tests.processes import Done, finish, wait_until_stopped, wake
from tests.toy import DS, Toy, toy_config, write_plain, write_rows

pytestmark = [pytest.mark.spark, pytest.mark.slow]

NEXT_DS, THIRD_DS = "2024-03-11", "2024-03-12"
# Five weeks of the toy's events are few: every item is retrieved.
BUILT = ("candidates.als_items=0", "candidates.max_candidates=8", "candidates.popular_items=8")

# The toy's events end soon, and it publishes the best five.
MEASURED = ("labels.window_days=3", "evaluation.ks=[1, 5]")


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy world whose day is published."""
    world = Toy.build(spark_session, tmp_path_factory.mktemp("toy"))
    score_daily.main(world.args())
    return world


def start(toy: Toy, job: str, arguments: Sequence[str], failpoint: str) -> Popen[str]:
    return processes.start(job, arguments, scratch=toy.root, failpoint=failpoint)


def race(toy: Toy, job: str, arguments: Sequence[str], failpoint: str) -> list[Done]:
    """Start a job twice, let both come to a point, and go on together; return them, the one that published first."""
    both = [start(toy, job, arguments, f"{failpoint}:stop") for _ in range(2)]
    for process in both:
        wait_until_stopped(process)
    for process in both:
        os.kill(process.pid, signal.SIGCONT)
    done = sorted((finish(process) for process in both), key=lambda one: one.code)
    assert [one.code for one in done] == [0, 5], "\n".join(one.log for one in done)
    return done


def content(spark: SparkSession, config: Config, role: Role, where: str = "true") -> list[Any]:
    return sorted(map(repr, read_table(spark, config.table(role)).where(where).collect()))


def entries(spark: SparkSession, toy: Toy, ds: str) -> list[Any]:
    rows = read_table(spark, toy.config.table(Role.LEDGER))
    return rows.where((F.col("job") == "update_histories") & (F.col("ds") == ds)).collect()


@pytest.mark.parametrize("point", ["before_histories", "histories_written", "histories_ready"])
def test_an_update_of_histories_that_was_killed_is_finished_once(
    spark: SparkSession, tmp_path: Path, point: str
) -> None:
    toy = Toy.build(spark, tmp_path)
    killed = finish(start(toy, "update_histories", toy.args(ds=NEXT_DS, target=None), f"{point}:kill"))
    assert killed.killed, killed.log
    assert entries(spark, toy, NEXT_DS) == []
    for _ in range(2):
        update_histories.main(toy.args(ds=NEXT_DS, target=None))
    rows, ref = content(spark, toy.config, Role.HISTORIES), toy.config.table(Role.HISTORIES)
    assert len(entries(spark, toy, NEXT_DS)) == 1
    version = table_version(spark, ref)
    update_histories.main([*toy.args(ds=NEXT_DS, target=None), "--rebuild"])
    assert content(spark, toy.config, Role.HISTORIES) == rows
    assert table_version(spark, ref) == version + 1


def test_of_two_updates_of_histories_at_once_one_wins_also_beside_a_compaction(
    spark: SparkSession, tmp_path: Path
) -> None:
    toy = Toy.build(spark, tmp_path)
    arguments = toy.args(ds=NEXT_DS, target=None)
    sleeper = start(toy, "update_histories", arguments, "before_histories:stop")
    wait_until_stopped(sleeper)
    # Maintenance moves the version, and no row.
    ref = toy.config.table(Role.HISTORIES)
    version = table_version(spark, ref)
    rewritten = DeltaTable.forPath(spark, ref.location).optimize().executeZOrderBy("user_id").select("metrics")
    assert rewritten.collect()[0]["metrics"]["numFilesRemoved"] > 0
    assert table_version(spark, ref) == version + 1
    assert wake(sleeper).code == 0
    _, loser = race(toy, "update_histories", toy.args(ds=THIRD_DS, target=None), "before_histories")
    [entry] = entries(spark, toy, THIRD_DS)
    assert f"run {entry['run_id']} brought it to {THIRD_DS}" in loser.log.splitlines()[-1]
    # One that slept while the days went on changes nothing.
    sleeper = start(
        toy, "update_histories", [*toy.args(ds=THIRD_DS, target=None), "--rebuild"], "before_histories:stop"
    )
    wait_until_stopped(sleeper)
    update_histories.main(toy.args(ds="2024-03-13", target=None))
    rows = content(spark, toy.config, Role.HISTORIES)
    woken = wake(sleeper)
    assert woken.code == 5, woken.log
    assert content(spark, toy.config, Role.HISTORIES) == rows


def test_of_two_rebuilds_of_an_older_day_at_once_one_wins(toy: Toy) -> None:
    _, loser = race(toy, "update_histories", toy.args(ds="2024-03-08", target=None), "before_histories")
    assert "brought it to 2024-03-08" in loser.log.splitlines()[-1]


def test_candidates_are_built_once_whatever_happens_to_a_run(spark: SparkSession, tmp_path: Path) -> None:
    # The toy's own candidates were not made by the job: these are another table.
    moved = (*BUILT, f"tables.candidates.location={tmp_path}/built")
    toy = Toy.build(spark, tmp_path)
    config, arguments = toy_config(tmp_path, *moved), toy.args(*moved, target=None)
    killed = finish(start(toy, "build_candidates", arguments, "candidates_written:kill"))
    assert killed.killed, killed.log
    rows = content(spark, config, Role.CANDIDATES)
    assert rows
    version = table_version(spark, config.table(Role.CANDIDATES))
    build_candidates.main(arguments)
    assert table_version(spark, config.table(Role.CANDIDATES)) == version

    # An event of before the day changes what was built from: nothing is replaced in silence.
    write_rows(spark, toy.config, Role.EVENTS, [(3, 5, _instant(spark), "buy", 1.0, "2024-03-01")])
    with pytest.raises(InputError, match=rf"candidates of {DS} were built by run \w+ from other inputs; --replace"):
        build_candidates.main(arguments)
    assert content(spark, config, Role.CANDIDATES, f"ds = '{DS}'") == rows
    build_candidates.main([*arguments, "--replace"])
    assert content(spark, config, Role.CANDIDATES, f"ds = '{DS}'") != rows


def test_of_two_builds_of_candidates_at_once_one_wins_and_two_days_both_land(
    spark: SparkSession, tmp_path: Path
) -> None:
    moved = (*BUILT, f"tables.candidates.location={tmp_path}/built")
    toy = Toy.build(spark, tmp_path)
    config = toy_config(tmp_path, *moved)
    later = toy.args(*moved, ds=NEXT_DS, target=None)
    _, loser = race(toy, "build_candidates", later, "before_candidates")
    assert f"ds {NEXT_DS} of candidates was written by run" in loser.log.splitlines()[-1]
    # Two days at once both land.
    both = [start(toy, "build_candidates", toy.args(*moved, ds=ds, target=None), "before_candidates:stop")
            for ds in (THIRD_DS, "2024-03-13")]  # fmt: skip
    for process in both:
        wait_until_stopped(process)
    for process in both:
        os.kill(process.pid, signal.SIGCONT)
    for done in [finish(process) for process in both]:
        assert done.code == 0, done.log
    days = read_table(spark, config.table(Role.CANDIDATES)).select("ds").distinct().count()
    assert days == 3


def test_metrics_are_written_once_whatever_happens_to_a_run(toy: Toy, spark: SparkSession) -> None:
    killed = finish(start(toy, "evaluate", toy.args(*MEASURED), "metrics_written:kill"))
    assert killed.killed, killed.log
    ref = toy.config.table(Role.METRICS)
    rows, version = content(spark, toy.config, Role.METRICS), table_version(spark, ref)
    assert rows
    evaluate.main(toy.args(*MEASURED))
    assert table_version(spark, ref) == version
    score_daily.main(toy.args(target="scores_other"))
    _, loser = race(toy, "evaluate", toy.args(*MEASURED, target="scores_other"), "before_metrics")
    assert "of metrics was written by run" in loser.log.splitlines()[-1]
    with pytest.raises(InputError, match=r"stand already, and evaluation settings differ since; --replace"):
        evaluate.main(toy.args(*MEASURED, "evaluation.popularity_days=3"))
    assert set(rows) <= set(content(spark, toy.config, Role.METRICS))
    evaluate.main([*toy.args(*MEASURED, "evaluation.popularity_days=3"), "--replace"])
    # Other bands of popularity have other rows: that none is there twice is what counts.
    measured = read_table(spark, ref)
    assert measured.select("run_id").distinct().count() == 2
    assert measured.count() == measured.select("run_id", "ordering", "metric", "k", "segment").distinct().count()


def test_metrics_that_another_run_wrote_since_the_events_were_read_stay(
    toy: Toy, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = evaluate.measure

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(evaluate, "measure", measure)
        evaluate.main([*toy.args(*MEASURED, "evaluation.popularity_days=4"), "--replace"])
        return measure(*args, **kwargs)

    monkeypatch.setattr(evaluate, "measure", meanwhile)
    with pytest.raises(AnotherRunWon, match="of metrics was written by run"):
        evaluate.main([*toy.args(*MEASURED), "--replace"])


@pytest.mark.parametrize(
    ("job", "point", "options"),
    [
        (evaluate, "metrics_written", {"target": "scores_unheard"}),
        # Last: it takes the toy's histories to another day.
        (update_histories, "histories_written", {"ds": NEXT_DS, "target": None}),
    ],
)
def test_a_commit_whose_answer_was_lost_is_recognised(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, job: Any, point: str, options: Any
) -> None:
    if job is evaluate:
        score_daily.main(toy.args(target="scores_unheard"))
    monkeypatch.setenv(VARIABLE, f"{point}:lose")
    job.main(toy.args(*MEASURED, **options) if job is evaluate else toy.args(**options))
    assert "stands, though its answer was lost" in caplog.text


def test_an_export_that_was_killed_or_slept_leaves_what_is_current(spark: SparkSession, tmp_path: Path) -> None:
    toy = Toy.build(spark, tmp_path)
    root = toy.config.folder("item_states")
    [checkpoint_id] = [path.name for path in root.iterdir()]
    arguments = toy.args(ds=NEXT_DS, target=None)
    killed = finish(start(toy, "export_items", arguments, "item_states_written:kill"))
    assert killed.killed, killed.log
    assert current_export(root, checkpoint_id=checkpoint_id, ds=NEXT_DS) == ""
    export_items.main(arguments)
    first = current_export(root, checkpoint_id=checkpoint_id, ds=NEXT_DS)
    assert first

    items = read_table(spark, toy.config.table(Role.ITEMS)).localCheckpoint()
    write_plain(items.withColumn("product_subclass", F.lit("class 1")), toy.config, Role.ITEMS)
    sleeper = start(toy, "export_items", arguments, "item_states_written:stop")
    wait_until_stopped(sleeper)
    write_plain(items.withColumn("product_subclass", F.lit("class 2")), toy.config, Role.ITEMS)
    export_items.main(arguments)
    newest = current_export(root, checkpoint_id=checkpoint_id, ds=NEXT_DS)
    assert newest not in (first, "")
    woken = wake(sleeper)
    assert woken.code == 5, woken.log
    assert f"were made {newest} by another export" in woken.log.splitlines()[-1]
    assert current_export(root, checkpoint_id=checkpoint_id, ds=NEXT_DS) == newest


def _instant(spark: SparkSession) -> Any:
    return spark.sql("select timestamp '2024-03-01 12:00:00'").collect()[0][0]
