"""Several dates in one plan: a small DataFrame of request times to join events with. Driver only; pure.

One plan for all dates, because on small data Spark spends more time on planning and compiling a plan than on its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.dates import request_time_us
from gesr_core.names import Col

DAY_US: Final = 86_400_000_000


def with_request_times(df: DataFrame, dates: Sequence[str], *, when: Column) -> DataFrame:
    """Pair each row with the dates for which `when` holds; sets the columns ds and request_us, which `when` may use.

    A ds of the row's own (an event's partition) makes way.
    """
    rows = [(ds, request_time_us(ds)) for ds in dates]
    times = df.sparkSession.createDataFrame(rows, f"{Col.DS} string, request_us bigint")
    return df.drop(Col.DS).join(F.broadcast(times), on=when, how="inner")
