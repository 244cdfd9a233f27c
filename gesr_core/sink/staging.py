"""Staging: scored rows of shard attempts, before anybody may read them as scores. Driver only."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession, functions as F

from gesr_core.config import TableRef
from gesr_core.names import Col
from gesr_core.sink.commits import past_conflicts
from gesr_core.sink.ledger import LedgerRow
from gesr_core.sink.tables import append, commit_lock
from gesr_core.sink.work import Work


@dataclass(frozen=True)
class ShardCounts:
    """What one shard of an attempt holds, and what scoring it took."""

    users: int
    candidates_in: int
    candidates_scored: int
    work: Work

    def to_ledger(self) -> dict[str, int]:
        """Return the counts that a shard's ledger entry has."""
        return {name: value for name, value in vars(self).items() if name != "work"}


def new_attempt_id() -> str:
    """Return a fresh attempt id; it names all shards that one wave writes."""
    return uuid.uuid4().hex[:12]


def waves(missing: Sequence[int], *, size: int) -> Iterator[list[int]]:
    """Yield the missing shards in groups of `size`."""
    for start in range(0, len(missing), size):
        yield list(missing[start : start + size])


def one_partition_per_part(requests: DataFrame, shards: Mapping[int, int]) -> DataFrame:
    """Put each part of each shard into a partition of its own, sorted by user and request.

    Plain hash partitioning would put two of them into one partition and leave another empty.

    Args:
        requests: rows of these shards alone.
        shards: into how many parts each is cut (1: it is whole).
    """
    widest = max(shards.values())
    codes = [shard * widest + part for shard, parts in shards.items() for part in range(parts)]
    count = len(codes)
    place = F.pmod(F.hash(F.col("id").cast("int")), F.lit(count))
    keys = requests.sparkSession.range(64 * count).groupBy(place.alias("place")).agg(F.min("id").alias("id")).collect()
    key_of_place = {row["place"]: int(row["id"]) for row in keys}
    # 64 draws a place miss one with odds of e^-64; then two parts share a partition, which is only slower.
    key_of_code = [F.lit(x) for i, code in enumerate(codes) for x in (code, key_of_place.get(i, i))]
    key: Column = F.create_map(*key_of_code)[F.col(Col.SHARD) * widest + F.col(Col.PART)].cast("int")
    placed = requests.withColumn("_place", key).repartition(count, "_place").drop("_place")
    return placed.sortWithinPartitions(Col.SHARD, Col.PART, Col.USER_ID, Col.REQUEST)


def stage(scored: DataFrame, ref: TableRef, *, work_id: str, attempt_id: str) -> None:
    """Append the scored rows of an attempt in one commit; nothing of it counts until the ledger accepts it."""
    rows = scored.withColumns({Col.WORK_ID: F.lit(work_id), Col.ATTEMPT_ID: F.lit(attempt_id)})
    append(rows, ref)


def attempt_counts(staging: DataFrame, *, work_id: str, attempt_id: str) -> dict[int, ShardCounts]:
    """Read back what an attempt staged, by shard."""
    rows = staging.where((F.col(Col.WORK_ID) == work_id) & (F.col(Col.ATTEMPT_ID) == attempt_id))
    per_shard = rows.groupBy(Col.SHARD).agg(
        F.count(F.lit(1)).alias("users"),
        F.sum(Col.CANDIDATES_IN).alias("candidates_in"),
        F.sum(Col.CANDIDATES_SCORED).alias("candidates_scored"),
        *Work.aggregates(),
    )
    return {
        row[Col.SHARD]: ShardCounts(row["users"], row["candidates_in"], row["candidates_scored"], Work.of_row(row))
        for row in per_shard.collect()
    }


def staged_users(staging: DataFrame, *, work_id: str) -> dict[tuple[int | None, str | None], int]:
    """Count the users that staging holds of a piece of work, by (shard, attempt id)."""
    counted = staging.where(F.col(Col.WORK_ID) == work_id).groupBy(Col.SHARD, Col.ATTEMPT_ID).count()
    return {(row[Col.SHARD], row[Col.ATTEMPT_ID]): row["count"] for row in counted.collect()}


def by_attempt(accepted: Mapping[int, LedgerRow]) -> dict[str, list[int]]:
    """Return the shards of each accepted attempt: a wave's shards share one."""
    found: dict[str, list[int]] = {}
    for shard, row in sorted(accepted.items()):
        found.setdefault(str(row.attempt_id), []).append(shard)
    return found


def accepted_rows(staging: DataFrame, accepted: Mapping[int, LedgerRow], *, work_id: str) -> DataFrame:
    """Return the rows of the accepted attempts alone, each shard once."""
    of_attempt = F.lit(False)
    for attempt_id, shards in sorted(by_attempt(accepted).items()):
        of_attempt = of_attempt | ((F.col(Col.ATTEMPT_ID) == attempt_id) & F.col(Col.SHARD).isin(shards))
    return staging.where((F.col(Col.WORK_ID) == work_id) & of_attempt)


def clear_staging(spark: SparkSession, ref: TableRef, *, work_id: str) -> None:
    """Drop a published piece of work from staging; its files stay until the table is vacuumed."""
    table = DeltaTable.forPath(spark, ref.location) if ref.is_path else DeltaTable.forName(spark, ref.location)

    def delete() -> None:
        with commit_lock(ref):
            table.delete(F.col(Col.WORK_ID) == work_id)

    past_conflicts(delete, where=ref.location)
