"""Create tables idempotently and commit to them, one commit at a time where the file system needs it. Driver only."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from delta.tables import DeltaTable
from filelock import FileLock, Timeout
from pyspark.sql import DataFrame, DataFrameWriter, SparkSession, functions as F

from gesr_core.config import TableRef
from gesr_core.errors import GesrError
from gesr_core.names import Role
from gesr_core.schema import PARTITIONED_BY
from gesr_core.sink.commits import past_conflicts

log = logging.getLogger(__name__)

# A lock goes with its process, so whoever holds it lives: a wave that another day scores may take long.
LOCK_TIMEOUT_S, _LOCK_SAID_EVERY_S = 4 * 3600.0, 60.0
# Delta's default
_LOG_DAYS = 30


@contextmanager
def commit_lock(ref: TableRef, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the table's commit lock; a no-op for catalogs and URIs, whose storage arbitrates.

    On a plain local folder two JVMs racing for one Delta version can both believe that they won.

    Raises:
        GesrError: another process held the lock for the whole of `timeout_s`.
    """
    folder = ref.local_folder
    if folder is None:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, started_s = FileLock(folder.parent / f".{folder.name}.commit.lock"), time.monotonic()
    while True:
        left_s = timeout_s - (time.monotonic() - started_s)
        try:
            lock.acquire(timeout=max(0.0, min(left_s, _LOCK_SAID_EVERY_S)))
            break
        except Timeout as err:
            if left_s <= _LOCK_SAID_EVERY_S:
                raise GesrError(
                    f"{lock.lock_file} was held by another process for {timeout_s:g} s: is a run stopped in mid-commit?"
                ) from err
            log.info("another process commits to %s: waiting for it", ref.location)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def full_disk_explained(ref: TableRef) -> Iterator[None]:
    """Turn a write that died for want of space into one line; nothing was committed then.

    Raises:
        GesrError: the device is full.
    """
    try:
        yield
    except Exception as err:
        # Spark wraps the JVM's IOException several times over: its text is what all the wrappings have in common.
        if os.strerror(errno.ENOSPC) not in str(err):
            raise
        raise GesrError(
            f"no space left on the device while writing {ref.role} to {ref.location}: nothing was committed"
        ) from err


def create_table(
    spark: SparkSession, ref: TableRef, columns: Mapping[str, str], *, properties: Mapping[str, str] | None = None
) -> None:
    """Create the Delta table if it does not exist, partitioned as its role says; an existing one is left as it is."""
    builder = DeltaTable.createIfNotExists(spark)
    builder = builder.location(ref.location) if ref.is_path else builder.tableName(ref.location)
    for name, type_ in columns.items():
        builder = builder.addColumn(name, type_)
    partitioned_by = PARTITIONED_BY.get(_role(ref), ())
    if partitioned_by:
        builder = builder.partitionedBy(*partitioned_by)
    for key, value in {**retention(ref), **(properties or {})}.items():
        builder = builder.property(key, value)

    def create() -> None:
        with commit_lock(ref):
            builder.execute()

    # Two first commits of a table are a conflict on storages without a lock of ours.
    past_conflicts(create, where=ref.location)


def retention(ref: TableRef) -> dict[str, str]:
    """Return the properties that keep a table's log and removed files as long as runs that read it replay.

    The log is never kept for less than Delta's default: what a day was made from stands there alone.
    """
    if ref.keep_days is None:
        return {}
    return {
        "delta.logRetentionDuration": f"interval {max(_LOG_DAYS, ref.keep_days)} days",
        "delta.deletedFileRetentionDuration": f"interval {ref.keep_days} days",
    }


def create_or_replace(df: DataFrame, ref: TableRef, *, properties: Mapping[str, str]) -> None:
    """Make the table hold exactly `df`, with `properties`, in one commit; partitioned as its role says.

    Files without a Delta log, such as a failed write leaves, do not stand in the way (they would for `create`).
    """
    writer = df.writeTo(ref.sql_name).using("delta")
    partitioned_by = PARTITIONED_BY.get(_role(ref), ())
    if partitioned_by:
        writer = writer.partitionedBy(*(F.col(name) for name in partitioned_by))
    for key, value in {**retention(ref), **properties}.items():
        writer = writer.tableProperty(key, value)
    with commit_lock(ref):
        writer.createOrReplace()


def newest_version(spark: SparkSession, ref: TableRef) -> int:
    """Return the newest Delta version of a table that exists."""
    newest = spark.sql(f"DESCRIBE HISTORY {ref.sql_name} LIMIT 1").select("version").first()
    return int(newest["version"]) if newest else 0


def append(df: DataFrame, ref: TableRef, *, metadata: str | None = None, txn: tuple[str, int] | None = None) -> None:
    """Append rows in one commit; `metadata` becomes the commit's user metadata, `txn` is as in `replace_where`.

    Raises:
        GesrError: conflicts did not end. An append meets one where somebody changes the table's properties.
    """
    writer = _with_options(df.write.format("delta").mode("append"), metadata, txn)
    past_conflicts(lambda: _commit(writer, ref), where=ref.location)


def replace_where(
    df: DataFrame,
    ref: TableRef,
    *,
    column: str,
    value: str | Sequence[str],
    metadata: str | None = None,
    txn: tuple[str, int] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Replace the partition `column` = `value`, or those of several values, in one commit.

    `txn` = (application id, version): Delta skips the commit in silence when that application already committed this
    version or a later one, and reports success; the caller must read back what stands there. `check` is called once
    the commit lock is held: whoever waited for it may have waited for a rival.
    """
    values = ", ".join(map(_quoted, [value] if isinstance(value, str) else value))
    writer = df.write.format("delta").mode("overwrite").option("replaceWhere", f"{column} IN ({values})")
    _commit(_with_options(writer, metadata, txn), ref, check)


def overwrite(
    df: DataFrame,
    ref: TableRef,
    *,
    metadata: str | None = None,
    txn: tuple[str, int] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Replace the whole table in one commit; its schema stays; `txn` and `check` are as in `replace_where`."""
    _commit(_with_options(df.write.format("delta").mode("overwrite"), metadata, txn), ref, check)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _with_options(writer: DataFrameWriter, metadata: str | None, txn: tuple[str, int] | None) -> DataFrameWriter:
    if metadata is not None:
        writer = writer.option("userMetadata", metadata)
    return writer if txn is None else writer.option("txnAppId", txn[0]).option("txnVersion", txn[1])


def _commit(writer: DataFrameWriter, ref: TableRef, check: Callable[[], None] | None = None) -> None:
    with commit_lock(ref):
        if check is not None:
            check()
        if ref.is_path:
            writer.save(ref.location)
        else:
            writer.saveAsTable(ref.location)


def _role(ref: TableRef) -> Role:
    # A challenger's target is a scores table under another name.
    return Role(ref.role) if ref.role in set(Role) else Role.SCORES
