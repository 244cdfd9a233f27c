"""Housekeeping changes no row that anybody reads, and gives up only what nobody will publish."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession, functions as F

from gesr_core.daily.opening import open_run
from gesr_core.io.retention import days_of
from gesr_core.io.tables import read_table, table_detail, table_version
from gesr_core.names import Role
from gesr_core.sink.ledger import LedgerRow
from gesr_core.sink.maintenance import orphaned_work
from jobs import maintain, score_daily
from tests.toy import DS, Toy, toy_overrides

NOW = dt.datetime(2024, 3, 10, tzinfo=dt.timezone.utc)


def entry(kind: str, work: str, *, days_ago: int, generation: int | None = None, ds: str = DS) -> LedgerRow:
    when, details = NOW - dt.timedelta(days=days_ago), {"work_id": work}
    return LedgerRow(kind, "score_daily", ds, "scores", f"r-{work}", generation=generation, details=details,
                     recorded_at=when)  # fmt: skip


def test_orphaned_is_what_the_ledger_does_not_know_what_was_overtaken_and_what_was_given_up() -> None:
    rows = [
        entry("run_opened", "overtaken", days_ago=2, generation=0),
        entry("run_opened", "published", days_ago=2, generation=0),
        entry("run_published", "published", days_ago=2, generation=1),
        entry("run_opened", "running", days_ago=1, generation=1),
        entry("run_opened", "given up", days_ago=40, generation=1),
        entry("run_opened", "old but alive", days_ago=40, generation=1),
        entry("shard_accepted", "old but alive", days_ago=1),
        entry("run_opened", "of another day", days_ago=1, generation=0, ds="2024-03-09"),
    ]
    staged = [row.details["work_id"] for row in rows] + ["unknown"]
    found = orphaned_work(rows, staged, before=NOW - dt.timedelta(days=30))
    assert found == ["given up", "overtaken", "published", "unknown"]


@pytest.mark.parametrize(
    ("properties", "days"),
    [({}, 7.0), ({"delta.deletedFileRetentionDuration": "interval 2 weeks 1 day"}, 15.0),
     ({"delta.deletedFileRetentionDuration": "interval 36 hours"}, 1.5)],
)  # fmt: skip
def test_how_long_removed_files_are_kept_is_read_from_the_table(properties: dict[str, str], days: float) -> None:
    assert days_of(properties, "delta.deletedFileRetentionDuration") == days


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy.build(spark_session, tmp_path_factory.mktemp("toy"))


def options(toy: Toy, *words: str) -> list[str]:
    return [*words, *(word for override in toy_overrides(toy.root) for word in ("--set", override))]


def content(spark: SparkSession, toy: Toy, role: Role) -> list[Any]:
    return sorted(map(repr, read_table(spark, toy.config.table(role)).collect()))


@pytest.mark.spark
def test_it_compacts_prunes_and_vacuums_and_a_replay_is_missed_by_name(
    toy: Toy, spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    score_daily.main(toy.args())
    score_daily.main(toy.args(replace=True))
    [standing] = read_table(spark, toy.config.table(Role.SCORES)).select("run_id").distinct().collect()
    # A run that has staged something and goes on, and work that nobody knows.
    args = score_daily._parser().parse_args(toy.args(target="scores_going"))
    going = open_run(spark, toy.config, args)
    shards = next(going.waves())
    going.accept(shards, going.stage(shards))
    staging = toy.config.table(Role.STAGING).location
    unknown = spark.read.format("delta").load(staging).withColumn("work_id", F.lit("unknown"))
    unknown.write.format("delta").mode("append").save(staging)
    # Time passes for the ledger: everything but the run that goes on is 500 days old.
    ledger = DeltaTable.forPath(spark, toy.config.table(Role.LEDGER).location)
    ledger.update(f"run_id != '{going.run.run_id}'", {"recorded_at": "recorded_at - interval 500 days"})

    inputs = {role: table_version(spark, toy.config.table(role)) for role in (Role.EVENTS, Role.CANDIDATES, Role.USERS)}
    kept = {role: content(spark, toy, role) for role in (Role.SCORES, Role.HISTORIES, Role.QUARANTINE)}
    versions = {role: table_version(spark, toy.config.table(role)) for role in (Role.LEDGER, Role.STAGING)}
    maintain.main([*options(toy), "--dry-run"])
    assert {role: table_version(spark, toy.config.table(role)) for role in versions} == versions

    caplog.clear()
    files = len(list(Path(toy.config.table(Role.LEDGER).location).glob("ds=*/*.parquet")))
    maintain.main([*options(toy), "--set", "retention.replay_days=20"])
    assert "2 runs lose their replay: " in caplog.text
    assert "ledger: removed files are kept for 20 days from now on" in caplog.text
    assert re.search(r"ledger: \d+ files put into 1, vacuumed", caplog.text)
    # What it removed is kept for replays.
    assert len(list(Path(toy.config.table(Role.LEDGER).location).glob("ds=*/*.parquet"))) > files
    assert {role: content(spark, toy, role) for role in kept} == kept
    assert {role: table_version(spark, toy.config.table(role)) for role in inputs} == inputs
    left = read_table(spark, toy.config.table(Role.LEDGER))
    # Of what was published before, only what stands is known; of the run that goes on, everything.
    old = {(row["kind"], row["run_id"]) for row in left.where("recorded_at < now() - interval 400 days").collect()}
    assert old == {("run_opened", standing["run_id"]), ("run_published", standing["run_id"])}
    assert {row["work_id"] for row in read_table(spark, toy.config.table(Role.STAGING)).collect()} == {
        going.run.work_id
    }
    properties = table_detail(spark, toy.config.table(Role.SCORES)).properties
    assert properties["delta.deletedFileRetentionDuration"] == "interval 20 days"
    # The day is known to be published, and the run that goes on goes on.
    score_daily.main(toy.args())
    assert "nothing to do" in caplog.text
    score_daily.main(toy.args(target="scores_going"))
    assert f"resuming the work of run {going.run.run_id}" in caplog.text
    # Named once.
    caplog.clear()
    maintain.main(options(toy))
    assert "0 runs lose their replay" in caplog.text
    notes = read_table(spark, toy.config.table(Role.LEDGER)).where("kind = 'maintained'").collect()
    assert sorted(len(json.loads(note["details"])["lost_replay"]) for note in notes) == [0, 2]
