"""What a partition was made from, in its commit's metadata, so that a second run can tell that nothing changed.

Driver only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import TableRef

_FORM: Final = "gesr_partitions"


@dataclass(frozen=True)
class Provenance:
    """What the rows of a partition are a function of: the job, a hash of its settings, a digest of the rows it read."""

    job: str
    settings: str
    inputs: str


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


def stale_partitions(spark: SparkSession, ref: TableRef, wanted: Mapping[str, Provenance]) -> list[str]:
    """Return the partitions of an existing table whose newest commit was made from something else than `wanted` says.

    So are those of which nothing is known: the log forgets commits in time, and then a partition is made again.
    """
    table = DeltaTable.forPath(spark, ref.location) if ref.is_path else DeltaTable.forName(spark, ref.location)
    commits = table.history().where(F.get_json_object("userMetadata", f"$.{_FORM}").isNotNull())
    standing: dict[str, Provenance] = {}
    for commit in commits.orderBy("version").select("userMetadata").collect():
        made_from = json.loads(commit["userMetadata"])[_FORM]
        standing.update({partition: Provenance(**made) for partition, made in made_from.items()})
    return [partition for partition, made in wanted.items() if standing.get(partition) != made]
