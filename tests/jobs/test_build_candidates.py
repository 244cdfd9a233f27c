"""The whole job on a toy table: what it writes, that it does so once, and what it refuses."""

from __future__ import annotations

import datetime as dt
import logging
import random
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession

from gesr_core.candidate_set import WRITTEN_BY
from gesr_core.config import Config
from gesr_core.errors import InputError
from gesr_core.io.tables import read_table, table_version
from gesr_core.names import Role
from gesr_core.schema import written_columns
from gesr_core.sink.tables import append, create_table
from jobs import build_candidates

pytestmark = pytest.mark.spark

DS = "2024-03-10"
SMALL = [
    "candidates={als_rank: 3, als_iterations: 1, als_min_item_events: 2, als_items: 4}",
    "candidates={popular_items: 4, max_candidates: 8}",
    "impressions={dates: 2, user_rate: 1.0, negative_rate: 0.5}",
]


def write_events(spark: SparkSession, config: Config, rows: list[tuple[Any, ...]]) -> None:
    columns = written_columns(Role.EVENTS)
    create_table(spark, config.table(Role.EVENTS), columns)
    schema = ", ".join(f"{name} {type_}" for name, type_ in columns.items())
    append(spark.createDataFrame(rows, schema), config.table(Role.EVENTS))


def event(day: int, *, user: int, item: int) -> tuple[Any, ...]:
    when = dt.datetime(2024, 2, 10, 12, tzinfo=dt.timezone.utc) + dt.timedelta(days=day)
    return (user, item, when, "buy", 1.0, when.strftime("%Y-%m-%d"))


def some_events() -> list[tuple[Any, ...]]:
    """Five weeks of events, a week of them from DS on."""
    rng = random.Random(3)
    return [event(rng.randrange(36), user=rng.randrange(8), item=rng.randrange(12)) for _ in range(150)]


def run(job_args: list[str], *options: str, ds: str = DS) -> None:
    build_candidates.main(["--ds", ds, *job_args, *(x for setting in SMALL for x in ("--set", setting)), *options])


def versions(spark: SparkSession, config: Config) -> list[int]:
    return [table_version(spark, config.table(role)) for role in (Role.CANDIDATES, Role.IMPRESSIONS)]


def test_a_second_run_changes_nothing_until_events_of_the_past_change(
    spark: SparkSession, config: Config, job_args: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_events(spark, config, some_events())
    run(job_args, "--impressions")
    assert "recall of bought within 7 days" in caplog.text
    built = versions(spark, config)
    # one commit creates the table, one fills it
    assert built == [1, 1]
    candidates = read_table(spark, config.table(Role.CANDIDATES))
    assert {row["ds"] for row in candidates.collect()} == {DS}
    impressions = read_table(spark, config.table(Role.IMPRESSIONS))
    assert {row["ds"] for row in impressions.collect()} == {"2024-02-25", "2024-03-03"}

    # A later event moves the table's version, and no content that was used.
    write_events(spark, config, [event(33, user=1, item=1)])
    caplog.clear()
    run(job_args, "--impressions")
    assert caplog.text.count("up to date, nothing to do") == 3
    assert versions(spark, config) == built

    # An event between the two label windows' ends changes the second one's labels, and the candidates of DS.
    write_events(spark, config, [event(24, user=1, item=1)])
    caplog.clear()
    with pytest.raises(InputError, match=rf"candidates of {DS} were built by run \w+ from other inputs; --replace"):
        run(job_args, "--impressions")
    assert versions(spark, config) == built
    caplog.clear()
    run(job_args, "--impressions", "--dry-run", "--replace")
    assert "impressions of 2024-02-25: up to date" in caplog.text
    assert "impressions of 2024-03-03: to build" in caplog.text
    assert versions(spark, config) == built
    run(job_args, "--replace")
    history = DeltaTable.forPath(spark, config.table(Role.CANDIDATES).location).history()
    assert [row["operation"] for row in history.collect()][:1] == ["WRITE"]
    assert versions(spark, config) == [2, 1]


def test_the_candidates_of_a_real_retrieval_are_left_alone(
    spark: SparkSession, config: Config, job_args: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_events(spark, config, some_events())
    ref = config.table(Role.CANDIDATES)
    create_table(spark, ref, written_columns(Role.CANDIDATES))
    with pytest.raises(InputError, match=r"candidates: the table at .* was not written by build_candidates"):
        run(job_args)
    run(job_args, "--impressions")
    assert "another retrieval's: left as they are" in caplog.text
    assert table_version(spark, ref) == 0
    assert read_table(spark, config.table(Role.IMPRESSIONS)).count() > 0


def test_impressions_of_an_earlier_version_are_refused_by_the_column_that_they_lack(
    spark: SparkSession, config: Config, job_args: list[str]
) -> None:
    write_events(spark, config, some_events())
    columns = written_columns(Role.IMPRESSIONS, tasks=[task.name for task in config.labels.tasks])
    del columns["sampling_weight"]
    create_table(spark, config.table(Role.IMPRESSIONS), columns, properties={WRITTEN_BY: "build_candidates"})
    with pytest.raises(InputError, match=r"impressions .* has no column 'sampling_weight' .*drop the table"):
        run(job_args, "--impressions")


@pytest.mark.parametrize(
    ("ds", "options", "message"),
    [
        ("2024-02-10", [], "events has no event before 2024-02-10$"),
        ("2024-02-20", ["--impressions"], "events has no event before 2024-02-06; lower impressions.dates"),
        ("2024-04-10", ["--impressions"], "events has no event from 2024-03-27 on to make labels of"),
    ],
)
def test_dates_that_events_do_not_reach_are_refused(
    spark: SparkSession, config: Config, job_args: list[str], ds: str, options: list[str], message: str
) -> None:
    write_events(spark, config, some_events())
    with pytest.raises(InputError, match=message):
        run(job_args, *options, ds=ds)


def test_an_empty_table_of_events_is_refused(spark: SparkSession, config: Config, job_args: list[str]) -> None:
    create_table(spark, config.table(Role.EVENTS), written_columns(Role.EVENTS))
    with pytest.raises(InputError, match="events has no event before 2024-03-10"):
        run(job_args)
