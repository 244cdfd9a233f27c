"""The one function that puts a user into a shard. Driver only; pure."""

from __future__ import annotations

from pyspark.sql import Column, functions as F


def shard_of(column: Column | str, *, shards: int) -> Column:
    """Return the shard (INT, 0 to shards - 1) of a user id: a pure function of the id, its type and `shards`."""
    return F.pmod(F.xxhash64(column), F.lit(shards)).cast("int")
