"""Write histories: each update is one Delta commit whose metadata says what they stand at from then on. Driver only.

The commit is fenced by the version of the rows that the run started from, plus one. A run that was overtaken therefore
changes nothing, and learns of it by reading the state back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession, functions as F
from pyspark.sql.types import StructType

from gesr_core.config import TableRef
from gesr_core.errors import AnotherRunWon, GesrError
from gesr_core.failpoints import reach
from gesr_core.histories_state import Commit, HistoriesState, changes_since, newest_state, read_commits
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.commits import commit_fenced
from gesr_core.sink.tables import append, commit_lock, create_table, overwrite, replace_where
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
        AnotherRunWon: rows moved on since `from_version`; nothing was changed.
    """
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

    def write(txn: tuple[str, int], check: Callable[[], None]) -> None:
        # MERGE takes no options: what a writer would be told is the session's for as long.
        fence = {"txnAppId": txn[0], "txnVersion": str(txn[1])}
        own = {_METADATA: state.to_json(), **{f"spark.databricks.delta.write.{k}": v for k, v in fence.items()}}
        with commit_lock(ref), settings(spark, own):
            check()
            merge.execute()

    counts = _commit(spark, ref, write, state=state, from_version=from_version, may_skip=True)
    return {"users_written": 0} if counts is None else counts


def rebuild_histories(
    spark: SparkSession, ref: TableRef, histories: DataFrame, *, state: HistoriesState, from_version: int
) -> Mapping[str, int]:
    """Replace all histories in one commit; a table that does not exist (`from_version` -1) is created first.

    Raises:
        AnotherRunWon: rows moved on since `from_version`; nothing was changed.
    """
    if from_version < 0:
        _create(spark, ref, histories)
        from_version = 0

    def write(txn: tuple[str, int], check: Callable[[], None]) -> None:
        overwrite(histories, ref, metadata=state.to_json(), txn=txn, check=check)

    return _commit(spark, ref, write, state=state, from_version=from_version) or {}


def replace_histories_at(
    spark: SparkSession, ref: TableRef, histories: DataFrame, *, state: HistoriesState, from_version: int
) -> Mapping[str, int]:
    """Replace the histories of `state.as_of` beside the newest, in one commit; the table is created when missing.

    Raises:
        AnotherRunWon: that day's rows moved on since `from_version`; nothing was changed.
    """
    _create(spark, ref, histories)
    dated = histories.select(F.lit(state.as_of).alias(Col.AS_OF), "*")

    def write(txn: tuple[str, int], check: Callable[[], None]) -> None:
        metadata = state.to_json()
        replace_where(dated, ref, column=Col.AS_OF, value=state.as_of, metadata=metadata, txn=txn, check=check)

    return _commit(spark, ref, write, state=state, from_version=max(0, from_version), as_of=state.as_of) or {}


def _commit(
    spark: SparkSession,
    ref: TableRef,
    write: Callable[[tuple[str, int], Callable[[], None]], None],
    *,
    state: HistoriesState,
    from_version: int,
    as_of: str | None = None,
    may_skip: bool = False,
) -> Mapping[str, int] | None:
    """Make the fenced commit of a state, see that it stands, and return what it counted; None: no row had to change.

    The fence is the version of the last commit that moved rows, plus one: maintenance does not count, and of two runs
    that started from the same rows Delta skips the later one.

    Raises:
        AnotherRunWon: another run moved the rows since `from_version`.
    """
    app_id = _APP_ID if as_of is None else f"{_APP_ID}/{as_of}"
    # A log that has forgotten its commits says nothing of them: then any version is late enough.
    moved = changes_since(read_commits(spark, ref), -1, as_of=as_of)
    txn = (app_id, 1 + min(from_version, moved[0].version if moved else from_version))

    def refuse_other() -> None:
        rivals = changes_since(read_commits(spark, ref), from_version, as_of=as_of)
        if rivals and not stands():
            raise _overtaken(ref, rivals[0], from_version=from_version)

    def stands() -> bool:
        found = newest_state(read_commits(spark, ref), as_of=as_of)
        return found is not None and found.run_id == state.run_id

    def commit() -> None:
        write(txn, refuse_other)
        reach("histories_written")

    reach("before_histories")
    commit_fenced(commit, refuse_other=refuse_other, stands=stands, where=ref.location)
    counts: Mapping[str, int] | None = None
    if stands():
        counts = _counts(read_commits(spark, ref)[0].metrics)
    elif may_skip:
        # Delta makes no commit for a merge that changes no row; the day has passed all the same.
        nothing = spark.createDataFrame([], _schema(spark, ref))
        append(nothing, ref, metadata=state.to_json(), txn=txn)
    if not stands():
        rivals = changes_since(read_commits(spark, ref), from_version, as_of=as_of)
        if rivals:
            raise _overtaken(ref, rivals[0], from_version=from_version)
        raise GesrError(f"{ref.location} took no commit of {state.as_of}: Delta knows one of that number already")
    return counts


def _schema(spark: SparkSession, ref: TableRef) -> StructType:
    table = spark.read.format("delta").load(ref.location) if ref.is_path else spark.read.table(ref.location)
    return table.schema


def _create(spark: SparkSession, ref: TableRef, histories: DataFrame) -> None:
    user, history = histories.schema[Col.USER_ID].dataType, histories.schema[Col.HISTORY].dataType
    item = history.elementType[Col.ITEM_ID].dataType  # type: ignore[attr-defined]
    columns = written_columns(Role(ref.role), user=user.simpleString(), item=item.simpleString())
    create_table(spark, ref, columns, properties=_PROPERTIES)


def _overtaken(ref: TableRef, rival: Commit, *, from_version: int) -> AnotherRunWon:
    state = HistoriesState.from_json(rival.metadata)
    who = f"run {state.run_id} brought it to {state.as_of}" if state else f"{rival.operation} of somebody else"
    return AnotherRunWon(
        f"{ref.role} moved on from version {from_version} to {rival.version} ({who}) while this run worked; it changed "
        "nothing: run it again"
    )


def _counts(metrics: Mapping[str, str]) -> Mapping[str, int]:
    names = {"numTargetRowsInserted": "users_inserted", "numTargetRowsUpdated": "users_updated"}
    names |= {"numTargetRowsDeleted": "users_deleted", "numOutputRows": "users_written"}
    return {ours: int(metrics[theirs]) for theirs, ours in names.items() if theirs in metrics}
