"""Housekeeping of the tables that score_daily and update_histories write. Driver only.

Nothing here touches what the user brings: events, items, users, candidates, impressions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import TableRef
from gesr_core.names import Col, Role
from gesr_core.sink.commits import past_conflicts
from gesr_core.sink.ledger import LedgerRow
from gesr_core.sink.tables import commit_lock, retention

OURS: Final = (Role.HISTORIES, Role.HISTORIES_AT, Role.STAGING, Role.SCORES, Role.LEDGER, Role.QUARANTINE, Role.METRICS)
MAINTAINED: Final = "maintained"
# What the ledger keeps of a publication that stands, however old it is.
_KEPT_KINDS: Final = ("run_opened", "run_published")
# What it keeps of all.
_ALWAYS_KEPT: Final = ("generation_taken", MAINTAINED)


def keep_retention(spark: SparkSession, ref: TableRef, properties: Mapping[str, str]) -> bool:
    """Set log and file retention of a table of ours to what is configured; say whether they were otherwise."""
    wanted = {name: value for name, value in retention(ref).items() if properties.get(name) != value}
    if not wanted:
        return False
    pairs = ", ".join(f"'{name}' = '{value}'" for name, value in wanted.items())
    _until_done(ref, lambda: spark.sql(f"ALTER TABLE {ref.sql_name} SET TBLPROPERTIES ({pairs})"))
    return True


def compact(spark: SparkSession, ref: TableRef) -> tuple[int, int]:
    """Put the small files of a table together; return how many files went and how many came."""
    metrics: list[tuple[int, int]] = []

    def run() -> None:
        row = _table(spark, ref).optimize().executeCompaction().select("metrics").collect()[0]["metrics"]
        metrics.append((int(row["numFilesRemoved"]), int(row["numFilesAdded"])))

    _until_done(ref, run)
    return metrics[-1]


def vacuum(spark: SparkSession, ref: TableRef) -> None:
    """Delete files that the table removed longer ago than its retention."""
    with commit_lock(ref):
        _table(spark, ref).vacuum(24.0 * (ref.keep_days or 7))


def runs_losing_replay(ledger: DataFrame, *, before: dt.datetime) -> list[str]:
    """Return the runs that published before a time and that no earlier maintenance named: what they read may go now."""
    named = ledger.where(F.col("kind") == MAINTAINED).select(
        F.explode(F.from_json(F.get_json_object("details", "$.lost_replay"), "array<string>")).alias(Col.RUN_ID)
    )
    published = ledger.where((F.col("kind") == "run_published") & (F.col("recorded_at") < F.lit(before)))
    rows = published.select(Col.RUN_ID).distinct().join(named.distinct(), on=Col.RUN_ID, how="left_anti").collect()
    return sorted(row[Col.RUN_ID] for row in rows)


def prune_ledger(spark: SparkSession, ref: TableRef, *, before: dt.datetime) -> int:
    """Delete entries from before a time, but for those of the newest publication of each ds; return how many."""
    ledger = spark.read.format("delta").load(ref.location) if ref.is_path else spark.read.table(ref.location)
    newest = (
        ledger.where(F.col("kind") == "run_published")
        .groupBy("job", Col.DS, "target")
        .agg(F.max_by(Col.RUN_ID, F.struct(Col.GENERATION, "recorded_at")).alias(Col.RUN_ID))
    )
    standing = [row[Col.RUN_ID] for row in newest.select(Col.RUN_ID).collect()]
    kept = F.col(Col.RUN_ID).isin(standing) & F.col("kind").isin(*_KEPT_KINDS)
    old = (F.col("recorded_at") < F.lit(before)) & ~kept & ~F.col("kind").isin(*_ALWAYS_KEPT)
    count = ledger.where(old).count()
    if count:
        _until_done(ref, lambda: _table(spark, ref).delete(old))
    return count


def orphaned_work(rows: Sequence[LedgerRow], staged: Sequence[str], *, before: dt.datetime) -> list[str]:
    """Return the work ids in staging that nobody will publish any more.

    Alive is work whose ds nothing else was published for since it was opened, and that was touched since a time.

    Args:
        rows: entries of the ledger: all openings and publications, and what else was recorded since that time.
        staged: the work ids in staging.
        before: what was last touched before this is given up.
    """
    published: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.kind == "run_published":
            key = (row.ds, row.target)
            published[key] = max(published.get(key, 0), int(row.generation or 0))
    opened = {
        row.details["work_id"]
        for row in rows
        if row.kind == "run_opened" and published.get((row.ds, row.target), 0) <= int(row.generation or 0)
    }
    touched = {row.details.get("work_id") for row in rows if row.recorded_at is not None and row.recorded_at >= before}
    return sorted(set(staged) - (opened & touched))


def clear_work(spark: SparkSession, ref: TableRef, work_ids: Sequence[str]) -> None:
    """Drop pieces of work from staging."""
    _until_done(ref, lambda: _table(spark, ref).delete(F.col(Col.WORK_ID).isin(list(work_ids))))


def _until_done(ref: TableRef, act: Callable[[], object]) -> None:
    """Do what may meet a conflict with a run, and harms none."""

    def locked() -> None:
        with commit_lock(ref):
            act()

    past_conflicts(locked, where=ref.location)


def _table(spark: SparkSession, ref: TableRef) -> DeltaTable:
    return DeltaTable.forPath(spark, ref.location) if ref.is_path else DeltaTable.forName(spark, ref.location)
