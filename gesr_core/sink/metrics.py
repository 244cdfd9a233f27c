"""Write the metrics of a publication. Driver only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark.sql import SparkSession

from gesr_core.config import TableRef
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.tables import create_table, replace_where


def write_metrics(spark: SparkSession, ref: TableRef, rows: Sequence[tuple[Any, ...]], *, ds: str, run_id: str) -> None:
    """Replace the rows of one publication: measured again, it stands there once.

    Each row is (ordering, metric, k, segment, value, ci_low, ci_high, n).
    """
    columns = written_columns(Role.METRICS)
    create_table(spark, ref, columns)
    schema = ", ".join(f"{name} {type_}" for name, type_ in columns.items())
    df = spark.createDataFrame([(ds, run_id, *row) for row in rows], schema).coalesce(1)
    replace_where(df, ref, column=Col.RUN_ID, value=run_id)
