"""What creating, locking and retrying commits do on a real table."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from delta.exceptions import MetadataChangedException
from pyspark.sql import SparkSession

from gesr_core.config import TableRef
from gesr_core.errors import GesrError
from gesr_core.sink import commits
from gesr_core.sink.commits import past_conflicts
from gesr_core.sink.tables import append, commit_lock, create_table, newest_version, overwrite, replace_where


@pytest.mark.spark
def test_a_table_that_is_there_is_left_as_it_is(spark: SparkSession, tmp_path: Path) -> None:
    ref = TableRef("scores", str(tmp_path / "scores"), {}, keep_days=10)
    create_table(spark, ref, {"ds": "string", "user_id": "bigint"}, properties={"a.note": "x"})
    for again in (ref, TableRef("scores", ref.location, {}, keep_days=40)):
        create_table(spark, again, {"ds": "string"}, properties={"a.note": "y"})
    detail = spark.sql(f"DESCRIBE DETAIL {ref.sql_name}").collect()[0]
    assert newest_version(spark, ref) == 0
    assert detail["properties"]["delta.deletedFileRetentionDuration"] == "interval 10 days"
    assert detail["properties"]["delta.logRetentionDuration"] == "interval 30 days"
    assert detail["properties"]["a.note"] == "x"


@pytest.mark.spark
def test_what_was_said_once_is_not_appended_again(spark: SparkSession, tmp_path: Path) -> None:
    ref = TableRef("quarantine", str(tmp_path / "quarantine"), {})
    create_table(spark, ref, {"ds": "string", "x": "int"})
    for once in ("a", "a", "b"):
        append(spark.createDataFrame([("2024-01-01", 1)], "ds string, x int"), ref, txn=(once, 1))
    assert spark.read.format("delta").load(ref.location).count() == 2


def test_a_lock_that_is_held_is_said_after_a_while(tmp_path: Path) -> None:
    ref = TableRef("scores", str(tmp_path / "scores"), {})
    held = pytest.raises(GesrError, match="is a run stopped in mid-commit")
    with commit_lock(ref), held, commit_lock(ref, timeout_s=0.1):
        pass


@pytest.mark.spark
def test_commits_wait_for_whoever_holds_the_lock(spark: SparkSession, tmp_path: Path) -> None:
    ref = TableRef("quarantine", str(tmp_path / "quarantine"), {})
    create_table(spark, ref, {"ds": "string", "x": "int"})
    row = spark.createDataFrame([("2024-01-01", 1)], "ds string, x int")
    commits_of: list[Callable[[], None]] = [
        lambda: append(row, ref),
        lambda: replace_where(row, ref, column="ds", value="2024-01-01"),
        lambda: overwrite(row, ref),
    ]
    for commit in commits_of:
        version = newest_version(spark, ref)
        thread = threading.Thread(target=commit)
        with commit_lock(ref):
            thread.start()
            # Far longer than the commit takes.
            thread.join(timeout=4)
            assert thread.is_alive()
            assert newest_version(spark, ref) == version
        thread.join()
        assert newest_version(spark, ref) == version + 1


def test_a_conflict_is_tried_again_and_other_errors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits.time, "sleep", lambda _: None)
    outcomes: list[Exception | None] = [MetadataChangedException("x"), None, OSError("y")]

    def act() -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    past_conflicts(act, where="here")
    assert len(outcomes) == 1
    with pytest.raises(OSError, match="y"):
        past_conflicts(act, where="here")
