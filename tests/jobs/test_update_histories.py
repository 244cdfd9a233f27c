"""The daily update against a model in plain Python: whatever the deliveries, histories are those of a rebuild."""

from __future__ import annotations

import datetime as dt
import itertools
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession, functions as F

from gesr_core.config import Config, load_config
from gesr_core.dates import request_time_us
from gesr_core.errors import AnotherRunWon, InputError
from gesr_core.histories_state import read_commits
from gesr_core.io.histories import read_histories, stands_at
from gesr_core.names import Role
from gesr_core.schema import written_columns
from gesr_core.sink.histories import merge_histories, rebuild_histories
from gesr_core.sink.ledger import read_ledger
from gesr_core.sink.tables import append, create_table
from gesr_core.spark_settings import settings
from jobs import update_histories

pytestmark = pytest.mark.spark

MAX_EVENTS = 6
Event = tuple[Any, Any, int, str, float]  # user, item, microseconds, action, value
Histories = dict[Any, list[tuple[Any, ...]]]


def ds_of(day: int) -> str:
    return (dt.date(2024, 1, 1) + dt.timedelta(days=day)).isoformat()


def us_of(day: int, *, hour: int = 0) -> int:
    return request_time_us(ds_of(day)) + hour * 3_600_000_000


@dataclass
class Shop:
    """`events` as Delta holds them, beside the same rows in plain Python."""

    spark: SparkSession
    config: Config
    args: list[str]
    ids: str = "bigint"
    rows: list[Event] = field(default_factory=list)

    def create(self, *, change_feed: bool) -> None:
        columns = written_columns(Role.EVENTS, user=self.ids, item=self.ids)
        properties = {"delta.enableChangeDataFeed": str(change_feed).lower()}
        create_table(self.spark, self.config.table(Role.EVENTS), columns, properties=properties)

    def deliver(self, events: list[Event]) -> None:
        schema = f"user_id {self.ids}, item_id {self.ids}, us bigint, action string, value double"
        df = self.spark.createDataFrame(events, schema).withColumn("event_ts", F.timestamp_micros("us"))
        # By the day of delivery, whatever the session's time zone; nothing may hang on it.
        df = df.select("user_id", "item_id", "event_ts", "action", "value", F.lit("arrival").alias("ds"))
        append(df.coalesce(1), self.config.table(Role.EVENTS))
        self.rows += events

    def delete(self, event: Event) -> None:
        self._table().delete(self._is(event))
        self.rows = [row for row in self.rows if row != event]

    def correct(self, event: Event, *, value: float) -> None:
        self._table().update(self._is(event), {"value": F.lit(value)})
        self.rows = [(*row[:4], value) if row == event else row for row in self.rows]

    def update(self, day: int, *options: str) -> None:
        update_histories.main(["--ds", ds_of(day), *self.args, *options])

    def expected(self, day: int) -> Histories:
        past = sorted({row for row in self.rows if row[2] < us_of(day)}, key=lambda row: (row[0], row[2], *row[1:]))
        histories: Histories = {}
        for user, item, us, action, value in past:
            histories[user] = [*histories.get(user, []), (item, us, action, value)][-MAX_EVENTS:]
        return histories

    def kept(self, day: int) -> Histories:
        rows, _ = read_histories(self.spark, self.config, ds=ds_of(day))
        flat = "transform(history, e -> struct(e.item_id, unix_micros(e.event_ts) AS us, e.action, e.value)) AS history"
        return {
            row["user_id"]: [tuple(e) for e in row["history"]] for row in rows.selectExpr("user_id", flat).collect()
        }

    def _table(self) -> DeltaTable:
        return DeltaTable.forPath(self.spark, self.config.table(Role.EVENTS).location)

    def _is(self, event: Event) -> Any:
        user, item, us, action, value = event
        same = (
            (F.col("user_id") == F.lit(user)) & (F.col("item_id") == F.lit(item)) & (F.col("action") == F.lit(action))
        )
        return same & (F.col("event_ts") == F.timestamp_micros(F.lit(us))) & (F.col("value") == F.lit(value))


@pytest.fixture
def shop(spark: SparkSession, job_args: list[str]) -> Shop:
    job_args += ["--set", f"histories.max_events={MAX_EVENTS}", "--set", "histories.late_window_days=7"]
    overrides = [value for option, value in itertools.pairwise(job_args) if option == "--set"]
    return Shop(spark, load_config("local", overrides=overrides), job_args)


@pytest.mark.slow
@pytest.mark.parametrize(("change_feed", "ids"), [(True, "bigint"), (False, "string")])
def test_a_month_of_deliveries_gives_the_histories_of_a_rebuild(shop: Shop, change_feed: bool, ids: str) -> None:
    shop.ids = ids
    shop.create(change_feed=change_feed)
    # Without the feed what is late or corrected is only seen inside the window.
    reach = 20 if change_feed else 4
    random_, since = random.Random(3), 0
    # An update costs seconds and a delivery next to nothing: few updates, each of many days' deliveries.
    for day in (2, 11, 12, 30) if change_feed else (2, 8, 14):
        id_of = int if ids == "bigint" else str
        shop.deliver(
            [e for d in range(since + 1, day + 1) for e in _delivery(random_, day=d, reach=reach, id_of=id_of)]
        )
        old = [row for row in shop.rows if us_of(since - reach) <= row[2] < us_of(since)]
        if since and day != 12:
            shop.delete(random_.choice(old))
            shop.correct(random_.choice([row for row in old if row in shop.rows]), value=9.0)
        shop.update(day)
        since = day
        assert shop.kept(day) == shop.expected(day), f"day {day}"
    operations = [commit.operation for commit in read_commits(shop.spark, shop.config.table(Role.HISTORIES))]
    assert operations == ["MERGE"] * (len(operations) - 2) + ["WRITE", "CREATE TABLE"]
    before = shop.kept(day)
    shop.update(day, "--rebuild")
    assert shop.kept(day) == before


def _delivery(random_: random.Random, *, day: int, reach: int, id_of: type) -> list[Event]:
    """What arrives on a day: its events, some late, some ahead of their time, one sent twice."""
    events: list[Event] = []
    for _ in range(4):
        of_day = day - random_.choice([1, 1, 2, random_.randint(1, reach), -random_.randint(0, 6)])
        us = us_of(of_day, hour=random_.randint(0, 23))
        action = random_.choice(["view", "buy"])
        events.append(
            (id_of(random_.randint(1, 5)), id_of(random_.randint(1, 9)), us, action, float(random_.randint(0, 2)))
        )
    return events + random_.choices(events, k=1)


def test_users_without_new_events_are_not_rewritten(shop: Shop) -> None:
    shop.create(change_feed=True)
    shop.deliver([(user, 1, us_of(1), "buy", 1.0) for user in range(50)])
    shop.update(2)
    # A duplicate of user 4's, a new one of user 5's, and user 6 loses the only one.
    shop.deliver([(4, 1, us_of(1), "buy", 1.0), (5, 2, us_of(2), "buy", 1.0), (60, 2, us_of(2), "buy", 1.0)])
    shop.delete((6, 1, us_of(1), "buy", 1.0))
    shop.update(3)
    metrics = read_commits(shop.spark, shop.config.table(Role.HISTORIES))[0].metrics
    counted = {name: int(metrics[f"numTargetRows{name}"]) for name in ("Updated", "Copied", "Inserted", "Deleted")}
    assert counted == {"Updated": 1, "Copied": 0, "Inserted": 1, "Deleted": 1}
    assert shop.kept(3) == shop.expected(3)


def test_an_older_day_is_rebuilt_beside_the_newest(shop: Shop) -> None:
    shop.create(change_feed=True)
    shop.deliver([(1, item, us_of(1 + item), "buy", 1.0) for item in range(3 * MAX_EVENTS)])
    shop.update(25)
    newest = shop.kept(25)
    shop.update(8)
    # User 1 has more than N events after that day: cutting the newest history would leave nothing.
    assert [event[0] for event in shop.kept(8)[1]] == [1, 2, 3, 4, 5, 6]
    assert shop.kept(25) == newest
    with pytest.raises(
        InputError, match=r"histories stand at 2024-01-26, not at 2024-01-10: run jobs/update_histories.py"
    ):
        shop.kept(9)
    shop.update(1)
    assert shop.kept(1) == {}


def test_a_day_can_be_repeated_and_passes_when_nothing_happens(shop: Shop) -> None:
    shop.create(change_feed=True)
    shop.deliver([(1, 1, us_of(1), "buy", 1.0)])
    shop.update(2)
    ref = shop.config.table(Role.HISTORIES)
    version = stands_at(shop.spark, ref)[1]
    shop.update(2)
    assert stands_at(shop.spark, ref)[1] == version
    shop.update(3)
    assert shop.kept(3) == {1: [(1, us_of(1), "buy", 1.0)]}
    shop.deliver([(1, 2, us_of(0), "buy", 1.0)])
    shop.update(3)
    assert shop.kept(3) == {1: [(2, us_of(0), "buy", 1.0), (1, us_of(1), "buy", 1.0)]}
    assert [row.details["action"] for row in read_ledger(
        shop.spark, shop.config.table(Role.LEDGER), job="update_histories", ds=ds_of(3), target="histories"
    )] == ["update", "update"]  # fmt: skip


def test_a_run_that_was_overtaken_changes_nothing(shop: Shop) -> None:
    shop.create(change_feed=True)
    shop.deliver([(1, 1, us_of(1), "buy", 1.0)])
    shop.update(2)
    ref = shop.config.table(Role.HISTORIES)
    state, version = stands_at(shop.spark, ref)
    assert state is not None
    stale = shop.spark.read.format("delta").load(ref.location).limit(0)
    theirs = replace(state, run_id="another")
    with pytest.raises(AnotherRunWon, match=r"moved on from version .* it changed nothing: run it again"):
        merge_histories(shop.spark, ref, stale, state=theirs, from_version=version - 1)
    with pytest.raises(AnotherRunWon, match=r"moved on from version .* it changed nothing: run it again"):
        rebuild_histories(shop.spark, ref, stale, state=theirs, from_version=version - 1)
    assert stands_at(shop.spark, ref) == (state, version)


def test_a_gap_in_the_change_feed_rebuilds(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.create(change_feed=False)
    shop.deliver([(1, 1, us_of(1), "buy", 1.0)])
    shop.update(2)
    shop.deliver([(1, 2, us_of(0), "buy", 1.0)])
    table = shop.config.table(Role.EVENTS).sql_name
    shop.spark.sql(f"ALTER TABLE {table} SET TBLPROPERTIES (delta.enableChangeDataFeed = true)")
    shop.update(3)
    assert "the change data feed of events cannot answer, it was not recorded" in caplog.text
    assert shop.kept(3) == shop.expected(3)


def test_vacuumed_change_files_rebuild(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.create(change_feed=True)
    shop.deliver([(1, 1, us_of(1), "buy", 1.0), (1, 2, us_of(1), "buy", 1.0)])
    shop.update(2)
    shop.delete((1, 2, us_of(1), "buy", 1.0))
    for path in Path(shop.config.table(Role.EVENTS).location).glob("_change_data/**/*.parquet"):
        path.unlink()
    shop.update(3)
    assert "the change data feed of events cannot answer, its files were vacuumed" in caplog.text
    assert shop.kept(3) == shop.expected(3)


def test_a_session_set_otherwise_gives_the_same_and_keeps_its_settings(shop: Shop) -> None:
    strange = {
        "spark.sql.session.timeZone": "Asia/Tokyo",
        "spark.sql.ansi.enabled": "false",
        "spark.sql.sources.partitionOverwriteMode": "dynamic",
    }
    shop.create(change_feed=True)
    with settings(shop.spark, strange):
        shop.deliver([(1, hour, us_of(1, hour=hour), "buy", 1.0) for hour in range(0, 24, 3)])
        shop.update(2)
        shop.deliver([(1, 30 + hour, us_of(2, hour=hour), "buy", 1.0) for hour in range(0, 48, 6)])
        shop.update(3)
        shop.update(2)
        assert {key: shop.spark.conf.get(key) for key in strange} == strange
    assert shop.kept(3) == shop.expected(3)
    assert shop.kept(2) == shop.expected(2)


def test_a_dry_run_changes_nothing(shop: Shop, tmp_path: Path) -> None:
    shop.create(change_feed=True)
    shop.update(2, "--dry-run")
    assert sorted(path.name for path in (tmp_path / "tables").iterdir() if not path.name.startswith(".")) == ["events"]
