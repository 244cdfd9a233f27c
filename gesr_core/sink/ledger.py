"""The ledger: one append-only table of runs, accepted shards and publications. Driver only."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import SparkSession, functions as F

from gesr_core.config import TableRef
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


def append_ledger(spark: SparkSession, ref: TableRef, rows: Sequence[LedgerRow]) -> None:
    """Append entries in one commit, stamped with the time of the call; the table is created when it is missing."""
    create_table(spark, ref, LEDGER_COLUMNS)
    now = dt.datetime.now(dt.timezone.utc)
    values = [_values(row, row.recorded_at or now) for row in rows]
    schema = ", ".join(f"{name} {type_}" for name, type_ in LEDGER_COLUMNS.items())
    append(spark.createDataFrame(values, schema).coalesce(1), ref)


def read_ledger(spark: SparkSession, ref: TableRef, *, job: str, ds: str, target: str) -> list[LedgerRow]:
    """Return the entries of one key (job, ds, target), oldest first; the table is created when it is missing."""
    create_table(spark, ref, LEDGER_COLUMNS)
    table = spark.read.format("delta").load(ref.location) if ref.is_path else spark.read.table(ref.location)
    of_key = table.where((F.col("job") == job) & (F.col("ds") == ds) & (F.col("target") == target))
    rows = [_row(values.asDict(recursive=True)) for values in of_key.collect()]
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
    return LedgerRow(**{**values, "details": json.loads(values["details"] or "{}"), "counts": values["counts"] or {}})
