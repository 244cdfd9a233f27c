"""Read a table's change data feed. Driver only."""

from __future__ import annotations

from typing import Final

from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import TableRef

CHANGE_FEED_PROPERTY: Final = "delta.enableChangeDataFeed"
# What Delta and Spark say when the feed cannot answer for a range of versions.
_GAPS: Final = {
    "DELTA_MISSING_CHANGE_DATA": "it was not recorded for all of these versions",
    "DELTA_CHANGE_TABLE_FEED_DISABLED": "it was not recorded for all of these versions",
    "FAILED_READ_FILE.FILE_NOT_EXIST": "its files were vacuumed",
    "DELTA_VERSION_NOT_FOUND": "the log of these versions was cleaned up",
    "DELTA_VERSIONS_NOT_CONTIGUOUS": "the log of these versions was cleaned up",
    "DELTA_LOG_FILE_NOT_FOUND": "the log of these versions was cleaned up",
    "DELTA_CHANGE_DATA_FEED_INCOMPATIBLE": "the table's columns changed",
}


def read_changes(spark: SparkSession, ref: TableRef, *, after: int, upto: int) -> DataFrame:
    """Return the rows that changed in the versions after `after` up to `upto`, under the contract's column names.

    `_change_type` is insert, delete, update_preimage or update_postimage.
    """
    if upto <= after:
        # An empty range is an error to Delta.
        return read_changes(spark, ref, after=upto - 1, upto=upto).limit(0)
    reader = spark.read.format("delta").option("readChangeFeed", "true")
    reader = reader.option("startingVersion", after + 1).option("endingVersion", upto)
    changes = reader.load(ref.location) if ref.is_path else reader.table(ref.location)
    return changes.withColumnsRenamed({real_name: name for name, real_name in ref.columns.items()})


def feed_gap(err: BaseException) -> str | None:
    """Say why the feed cannot answer, or None if `err` is about something else."""
    return next((reason for text, reason in _GAPS.items() if text in str(err)), None)
