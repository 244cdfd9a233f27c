"""Write histories: each update is one Delta commit whose metadata says what they stand at from then on. Driver only.

The commit is fenced: its transaction version is the table version that the run started from, plus one. A run that was
overtaken therefore changes nothing, and learns of it by reading the state back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import TableRef
from gesr_core.errors import GesrError
from gesr_core.histories_state import HistoriesState, newest_state, read_commits
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.tables import commit_lock, create_table, replace_where
from gesr_core.spark_settings import settings

_APP_ID: Final = "gesr.update_histories"
_METADATA: Final = "spark.databricks.delta.commitInfo.userMetadata"
_PROPERTIES: Final[Mapping[str, str]] = {
    # A changed row is marked and written anew: the cost of a day follows the day, not the table.
    "delta.enableDeletionVectors": "true",
    # Else each day leaves as many small files as there are shuffle partitions.
    "delta.autoOptimize.optimizeWrite": "true",
}


def merge_histories(
    spark: SparkSession, ref: TableRef, updated: DataFrame, *, state: HistoriesState, from_version: int
) -> Mapping[str, int]:
    """Update, insert or (where the new history is null) delete the rows of the given users; no other is rewritten.

    Raises:
        GesrError: the table moved on since `from_version`; nothing was changed.
    """
    fence = {"txnAppId": _APP_ID, "txnVersion": str(from_version + 1)}
    session = {_METADATA: state.to_json(), **{f"spark.databricks.delta.write.{k}": v for k, v in fence.items()}}
    table = DeltaTable.forPath(spark, ref.location) if ref.is_path else DeltaTable.forName(spark, ref.location)
    merge = (
        table.alias("old")
        .merge(updated.alias("new"), f"old.{Col.USER_ID} = new.{Col.USER_ID}")
        .whenMatchedDelete(condition=f"new.{Col.HISTORY} IS NULL")
        .whenMatchedUpdate(
            condition=f"NOT (old.{Col.HISTORY} <=> new.{Col.HISTORY})", set={Col.HISTORY: f"new.{Col.HISTORY}"}
        )
        .whenNotMatchedInsert(
            condition=f"new.{Col.HISTORY} IS NOT NULL",
            values={name: f"new.{name}" for name in (Col.USER_ID, Col.SHARD, Col.HISTORY)},
        )
    )
    with commit_lock(ref):
        _require_unmoved(spark, ref, from_version=from_version)
        with settings(spark, session):
            merge.execute()
        return _recorded(spark, ref, state=state, from_version=from_version)


def rebuild_histories(
    spark: SparkSession, ref: TableRef, histories: DataFrame, *, state: HistoriesState, from_version: int
) -> Mapping[str, int]:
    """Replace all histories in one commit; a table that does not exist (`from_version` -1) is created first.

    Raises:
        GesrError: the table moved on since `from_version`; nothing was changed.
    """
    if from_version < 0:
        _create(spark, ref, histories)
        from_version = 0
    writer = histories.write.format("delta").mode("overwrite").option("userMetadata", state.to_json())
    writer = writer.option("txnAppId", _APP_ID).option("txnVersion", from_version + 1)
    with commit_lock(ref):
        _require_unmoved(spark, ref, from_version=from_version)
        if ref.is_path:
            writer.save(ref.location)
        else:
            writer.saveAsTable(ref.location)
        return _recorded(spark, ref, state=state, from_version=from_version)


def replace_histories_at(
    spark: SparkSession, ref: TableRef, histories: DataFrame, *, state: HistoriesState
) -> Mapping[str, int]:
    """Replace the histories of `state.as_of` beside the newest, in one commit; the table is created when missing."""
    _create(spark, ref, histories)
    from_version = read_commits(spark, ref)[0].version
    dated = histories.select(F.lit(state.as_of).alias(Col.AS_OF), "*")
    replace_where(dated, ref, column=Col.AS_OF, value=state.as_of, metadata=state.to_json())
    with commit_lock(ref):
        return _recorded(spark, ref, state=state, from_version=from_version, as_of=state.as_of)


def _create(spark: SparkSession, ref: TableRef, histories: DataFrame) -> None:
    user, history = histories.schema[Col.USER_ID].dataType, histories.schema[Col.HISTORY].dataType
    item = history.elementType[Col.ITEM_ID].dataType  # type: ignore[attr-defined]
    columns = written_columns(Role(ref.role), user=user.simpleString(), item=item.simpleString())
    create_table(spark, ref, columns, properties=_PROPERTIES)


def _require_unmoved(spark: SparkSession, ref: TableRef, *, from_version: int) -> None:
    version = read_commits(spark, ref)[0].version
    if version != from_version:
        raise _overtaken(ref, from_version=from_version)


def _recorded(
    spark: SparkSession, ref: TableRef, *, state: HistoriesState, from_version: int, as_of: str | None = None
) -> Mapping[str, int]:
    """See that the table stands at `state` now, and return what its newest commit counted."""
    commits = read_commits(spark, ref)
    if commits[0].version == from_version:
        # Delta makes no commit for a write that changes no row; the day has passed all the same.
        with settings(spark, {_METADATA: state.to_json()}):
            spark.sql(f"ALTER TABLE {ref.sql_name} SET TBLPROPERTIES ('gesr.{Col.AS_OF}' = '{state.as_of}')")
        return {"users_written": 0}
    if newest_state(commits, as_of=as_of) != state:
        raise _overtaken(ref, from_version=from_version)
    return _counts(commits[0].metrics)


def _overtaken(ref: TableRef, *, from_version: int) -> GesrError:
    return GesrError(
        f"{ref.role} moved on from version {from_version} while this run worked; it changed nothing: run it again"
    )


def _counts(metrics: Mapping[str, str]) -> Mapping[str, int]:
    names = {"numTargetRowsInserted": "users_inserted", "numTargetRowsUpdated": "users_updated"}
    names |= {"numTargetRowsDeleted": "users_deleted", "numOutputRows": "users_written"}
    return {ours: int(metrics[theirs]) for theirs, ours in names.items() if theirs in metrics}
