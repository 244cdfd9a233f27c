"""What a partition was made from, and whether that still holds."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from gesr_core.config import TableRef
from gesr_core.dates import request_time_us
from gesr_core.sink.provenance import Provenance, commit_metadata, content_digests, settings_hash, stale_partitions
from gesr_core.sink.tables import create_table, replace_where
from gesr_core.spark_settings import settings

DAYS = [f"2024-01-0{day}" for day in (1, 2, 3)]


def digests(spark: SparkSession, rows: list[tuple[Any, ...]]) -> list[str]:
    df = spark.createDataFrame(rows, "id bigint, seen timestamp, value double")
    cuts_us = [request_time_us(ds) for ds in DAYS]
    return content_digests(df, columns=("id", "seen", "value"), instant="seen", before_us=cuts_us)


def row(day: int, id_: int, value: float | None = 1.0) -> tuple[Any, ...]:
    return id_, dt.datetime(2024, 1, day, 12, tzinfo=dt.timezone.utc), value


@pytest.mark.spark
def test_a_digest_covers_the_rows_before_its_cut_alone(spark: SparkSession) -> None:
    base = digests(spark, [row(1, 7), row(2, 8)])
    assert len(set(base)) == 3
    # Order does not matter; what lies on the second day changes the last digest only.
    assert digests(spark, [row(2, 8), row(1, 7)]) == base
    assert digests(spark, [row(1, 7), row(2, 9)])[:2] == base[:2]
    assert digests(spark, [row(1, 7), row(2, 9)])[2] != base[2]


@pytest.mark.spark
@pytest.mark.parametrize(
    "other",
    [
        [row(1, 7), row(1, 7), row(1, 7)],  # a pair of equal rows more
        [row(1, 7, 2.0)],
        [row(1, 7, None)],
        [],
    ],
)
def test_any_other_content_has_another_digest(spark: SparkSession, other: list[tuple[Any, ...]]) -> None:
    assert digests(spark, other)[1] != digests(spark, [row(1, 7)])[1]


@pytest.mark.spark
def test_the_sessions_time_zone_changes_no_digest(spark: SparkSession) -> None:
    rows = [row(1, 7), row(2, 8)]
    base = digests(spark, rows)
    with settings(spark, {"spark.sql.session.timeZone": "Asia/Tokyo"}):
        assert digests(spark, rows) == base


@pytest.mark.spark
def test_the_newest_commit_of_each_partition_counts(spark: SparkSession, tmp_path: Path) -> None:
    ref = TableRef(role="candidates", location=str(tmp_path / "candidates"), columns={})
    create_table(spark, ref, {"ds": "string", "user_id": "bigint"})
    old, new = Provenance("job", "settings", "old"), Provenance("job", "settings", "new")
    assert stale_partitions(spark, ref, {"2024-01-01": old}) == ["2024-01-01"]

    both = spark.createDataFrame([("2024-01-01", 1), ("2024-01-02", 1)], "ds string, user_id bigint")
    made_from = {"2024-01-01": old, "2024-01-02": old}
    replace_where(both, ref, column="ds", value=list(made_from), metadata=commit_metadata(made_from))
    assert stale_partitions(spark, ref, made_from) == []

    replace_where(
        both.where("ds = '2024-01-02'"), ref, column="ds", value="2024-01-02",
        metadata=commit_metadata({"2024-01-02": new}),
    )  # fmt: skip
    assert stale_partitions(spark, ref, made_from) == ["2024-01-02"]
    assert stale_partitions(spark, ref, {"2024-01-02": new}) == []


def test_settings_hash_alike_whatever_their_order() -> None:
    assert settings_hash({"a": 1, "b": {"c": 2}}) == settings_hash({"b": {"c": 2}, "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})
