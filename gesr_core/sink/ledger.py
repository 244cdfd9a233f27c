"""The ledger: one append-only table of runs, accepted shards and publications. Driver only."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import TableRef
from gesr_core.names import Col
from gesr_core.schema import LEDGER_COLUMNS
from gesr_core.sink.tables import append, create_table


@dataclass(frozen=True)
class LedgerRow:
    """One entry; `kind` says what it records (see `schema.LEDGER_COLUMNS`), `details` is stored as JSON."""

    kind: str
    job: str
    ds: str
    target: str
    run_id: str
    shard: int | None = None
    attempt_id: str | None = None
    generation: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    elapsed_s: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    recorded_at: dt.datetime | None = None


def append_ledger(spark: SparkSession, ref: TableRef, rows: Sequence[LedgerRow], *, once: str | None = None) -> None:
    """Append entries in one commit, stamped with the time of the call; the table is created when it is missing.

    Args:
        spark: the session.
        ref: the ledger.
        rows: what to append.
        once: names what they say; said a second time, nothing is appended.
    """
    create_table(spark, ref, LEDGER_COLUMNS)
    now = dt.datetime.now(dt.timezone.utc)
    values = [_values(row, row.recorded_at or now) for row in rows]
    schema = ", ".join(f"{name} {type_}" for name, type_ in LEDGER_COLUMNS.items())
    txn = None if once is None else (f"gesr/ledger/{once}", 1)
    append(spark.createDataFrame(values, schema).coalesce(1), ref, txn=txn)


def read_ledger(spark: SparkSession, ref: TableRef, *, job: str, ds: str, target: str) -> list[LedgerRow]:
    """Return the entries of one key (job, ds, target), oldest first; none where there is no ledger."""
    return _rows(_table(spark, ref).where((F.col("job") == job) & (F.col("ds") == ds) & (F.col("target") == target)))


def read_run(spark: SparkSession, ref: TableRef, run_id: str) -> list[LedgerRow]:
    """Return the entries of one run, oldest first; none where there is no ledger."""
    return _rows(_table(spark, ref).where(F.col(Col.RUN_ID) == run_id))


def targets(spark: SparkSession, ref: TableRef) -> list[str]:
    """Return the targets that runs were opened to publish to."""
    rows = _table(spark, ref).where(F.col("kind") == "run_opened").select("target").distinct().collect()
    return sorted(row["target"] for row in rows)


def read_since(spark: SparkSession, ref: TableRef, *, job: str, since: dt.datetime) -> list[LedgerRow]:
    """Return all openings and publications of a job, and what else it recorded since a time, oldest first."""
    always = F.col("kind").isin("run_opened", "run_published")
    return _rows(_table(spark, ref).where((F.col("job") == job) & (always | (F.col("recorded_at") >= F.lit(since)))))


def newest_published_before(
    spark: SparkSession, ref: TableRef, *, job: str, ds: str, target: str, checkpoint_id: str
) -> LedgerRow | None:
    """Return the publication of the newest earlier `ds` whose newest generation is of this checkpoint."""
    newest = _newest_before(spark, ref, job=job, ds=ds, target=target)
    of_checkpoint = newest.where(F.get_json_object("details", "$.pins.checkpoint.id") == checkpoint_id)
    return next(iter(_rows(of_checkpoint.orderBy(F.desc("ds")).limit(1))), None)


def published_before(
    spark: SparkSession, ref: TableRef, *, job: str, ds: str, target: str, days: int
) -> list[LedgerRow]:
    """Return the publications of the newest `days` earlier `ds`, each `ds` in its newest generation, oldest first."""
    newest = _newest_before(spark, ref, job=job, ds=ds, target=target)
    return sorted(_rows(newest.orderBy(F.desc("ds")).limit(days)), key=lambda row: row.ds)


def _newest_before(spark: SparkSession, ref: TableRef, *, job: str, ds: str, target: str) -> DataFrame:
    """The publications of all earlier `ds`, each `ds` in its newest generation."""
    published = _table(spark, ref).where(
        (F.col("kind") == "run_published") & (F.col("job") == job) & (F.col("target") == target) & (F.col("ds") < ds)
    )
    newest = published.groupBy("ds").agg(
        F.max_by(F.struct(*LEDGER_COLUMNS), F.struct("generation", "recorded_at")).alias("row")
    )
    return newest.select("row.*")


def _table(spark: SparkSession, ref: TableRef) -> DataFrame:
    exists = DeltaTable.isDeltaTable(spark, ref.location) if ref.is_path else spark.catalog.tableExists(ref.location)
    if not exists:
        return spark.createDataFrame([], ", ".join(f"{name} {type_}" for name, type_ in LEDGER_COLUMNS.items()))
    return spark.read.format("delta").load(ref.location) if ref.is_path else spark.read.table(ref.location)


def _rows(table: DataFrame) -> list[LedgerRow]:
    rows = [_row(values.asDict(recursive=True)) for values in table.collect()]
    # Entries of one commit share a time; the attempt id makes the order total, so every reader accepts the same one.
    return sorted(rows, key=lambda row: (row.recorded_at, row.shard or 0, row.attempt_id or "", row.run_id))


def _values(row: LedgerRow, now: dt.datetime) -> tuple[Any, ...]:
    return (
        row.kind,
        row.job,
        row.ds,
        row.target,
        row.run_id,
        row.shard,
        row.attempt_id,
        row.generation,
        dict(row.counts),
        row.elapsed_s,
        json.dumps(row.details, sort_keys=True),
        now,
    )


def _row(values: dict[str, Any]) -> LedgerRow:
    # Spark gives instants as this machine's wall clock has them, without a time zone.
    recorded_at = values["recorded_at"].astimezone(dt.timezone.utc)
    details, counts = json.loads(values["details"] or "{}"), values["counts"] or {}
    return LedgerRow(**{**values, "details": details, "counts": counts, "recorded_at": recorded_at})
