"""Partitions that are a function of what they were made from, which their commit's metadata says. Driver only.

So a second run can tell that nothing changed, and of two runs at once one learns that the other was quicker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import TableRef
from gesr_core.errors import AnotherRunWon, GesrError
from gesr_core.failpoints import reach
from gesr_core.sink.commits import commit_fenced
from gesr_core.sink.tables import replace_where

_FORM: Final = "gesr_partitions"


@dataclass(frozen=True)
class Provenance:
    """What the rows of a partition are a function of: the job, a hash of its settings, a digest of the rows it read.

    `run_id` is whose commit it is, and nothing that the rows depend on.
    """

    job: str
    settings: str
    inputs: str
    run_id: str = field(default="", compare=False)

    def differences(self, other: Provenance) -> list[str]:
        """Name what differs."""
        return [name for name in ("job", "settings", "inputs") if getattr(self, name) != getattr(other, name)]


def commit_metadata(made_from: Mapping[str, Provenance]) -> str:
    """Return the user metadata of a commit that wrote these partitions."""
    return json.dumps({_FORM: {partition: asdict(made) for partition, made in made_from.items()}}, sort_keys=True)


def settings_hash(*sections: object) -> str:
    """Return a SHA-256 over JSON-like settings."""
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def content_digests(df: DataFrame, *, columns: Sequence[str], instant: str, before_us: Sequence[int]) -> list[str]:
    """Digest the rows with `instant` before each of the given microseconds, in one pass; row order does not matter.

    Equal rows count as often as they occur. Two different contents share a digest with a chance of about 2^-64.
    """
    if not before_us:
        return []
    # The hash of a double or a timestamp is that of its bits: no text, no time zone.
    hashed = F.xxhash64(*columns)
    us = F.unix_micros(F.col(instant))
    aggregates = []
    for number, limit_us in enumerate(before_us):
        kept = F.when(us < limit_us, hashed)
        # The sum of the upper halves cannot overflow below four billion rows; xor alone would lose pairs of equal rows.
        sums = F.struct(F.count(kept), F.bit_xor(kept), F.sum(F.shiftright(kept, 32)))
        aggregates.append(F.to_json(sums).alias(f"digest_{number}"))
    row = df.agg(*aggregates).first()
    return [hashlib.sha256(str(digest).encode()).hexdigest() for digest in (row or [])]


def standing_partitions(spark: SparkSession, ref: TableRef, *, since: int = -1) -> dict[str, Provenance]:
    """Return what the partitions of an existing table were made from, as far as the log remembers.

    `since` leaves out what was committed up to that version.
    """
    table = DeltaTable.forPath(spark, ref.location) if ref.is_path else DeltaTable.forName(spark, ref.location)
    ours = F.get_json_object("userMetadata", f"$.{_FORM}").isNotNull() & (F.col("version") > since)
    standing: dict[str, Provenance] = {}
    for commit in table.history().where(ours).orderBy("version").select("userMetadata").collect():
        made_from = json.loads(commit["userMetadata"])[_FORM]
        standing.update({partition: Provenance(**made) for partition, made in made_from.items()})
    return standing


def stale_partitions(spark: SparkSession, ref: TableRef, wanted: Mapping[str, Provenance]) -> list[str]:
    """Return the partitions of an existing table whose newest commit was made from something else than `wanted` says.

    So are those of which nothing is known: the log forgets commits in time, and then a partition is made again.
    """
    standing = standing_partitions(spark, ref)
    return [partition for partition, made in wanted.items() if standing.get(partition) != made]


def write_partitions(
    spark: SparkSession,
    df: DataFrame,
    ref: TableRef,
    *,
    column: str,
    made_from: Mapping[str, Provenance],
    from_version: int,
    called: str | None = None,
) -> None:
    """Replace partitions of an existing table in one fenced commit.

    Args:
        spark: the session.
        df: the rows of exactly these partitions.
        ref: the table.
        column: the partitions' column, or an expression that tells them apart.
        made_from: what each partition is made from, all by one run.
        from_version: the table's version when this run looked what there was to do.
        called: what a message calls the column; None: its name.

    Raises:
        AnotherRunWon: another run wrote one of these partitions since.
    """
    [run_id] = {made.run_id for made in made_from.values()}
    job = next(iter(made_from.values())).job
    app_id = f"gesr/{job}/{ref.role}/{settings_hash(sorted(made_from))[:16]}"

    def rival() -> tuple[str, Provenance] | None:
        standing = standing_partitions(spark, ref, since=from_version)
        return next(((p, made) for p, made in standing.items() if p in made_from and made.run_id != run_id), None)

    def refuse_other() -> None:
        found = rival()
        if found is not None:
            raise AnotherRunWon(
                f"{called or column} {found[0]} of {ref.role} was written by run {found[1].run_id} while run {run_id} "
                "worked; this run changed nothing"
            )

    def stands() -> bool:
        standing = standing_partitions(spark, ref, since=from_version)
        return all(p in standing and standing[p].run_id == run_id for p in made_from)

    def write() -> None:
        metadata, txn = commit_metadata(made_from), (app_id, from_version + 1)
        replace_where(df, ref, column=column, value=list(made_from), metadata=metadata, txn=txn, check=refuse_other)
        reach(f"{ref.role}_written")

    reach(f"before_{ref.role}")
    commit_fenced(write, refuse_other=refuse_other, stands=stands, where=ref.location)
    if not stands():
        refuse_other()
        raise GesrError(f"{ref.location} was changed by somebody while run {run_id} wrote it; start the job again")
