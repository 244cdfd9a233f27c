"""How long a table keeps what a replay reads: its log and the files that it removed. Driver only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pyspark.sql import SparkSession

from gesr_core.config import TableRef
from gesr_core.io.tables import table_detail

# What holds where a table says nothing.
_DEFAULT_DAYS: Final = {"delta.logRetentionDuration": 30.0, "delta.deletedFileRetentionDuration": 7.0}
_DAYS_OF: Final = {"hour": 1 / 24, "day": 1.0, "week": 7.0, "month": 30.0, "year": 365.0}
_PART: Final = re.compile(r"(\d+)\s+(hour|day|week|month|year)s?")


def kept_days(spark: SparkSession, ref: TableRef) -> float:
    """Return for how many days an old version of the table can be read at least."""
    properties = table_detail(spark, ref).properties
    return min(days_of(properties, name) for name in _DEFAULT_DAYS)


def days_of(properties: Mapping[str, str], name: str) -> float:
    """Return the days of a property such as `interval 1 week 2 days`; Delta's default where it is not set."""
    parts = _PART.findall(properties.get(name, "").lower())
    if not parts:
        return _DEFAULT_DAYS[name]
    return sum(int(count) * _DAYS_OF[unit] for count, unit in parts)
