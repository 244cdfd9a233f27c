"""Write the metrics of a publication. Driver only."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final

from pyspark.sql import SparkSession, functions as F

from gesr_core.config import TableRef
from gesr_core.errors import InputError
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.provenance import Provenance, settings_hash, standing_partitions, write_partitions
from gesr_core.sink.tables import create_table

# Differences from another publication stand beside the metrics, and one is replaced without the other.
_AGAINST: Final = "against:"
_PART: Final = f"IF(ordering LIKE '{_AGAINST}%', concat({Col.RUN_ID}, ' ', ordering), {Col.RUN_ID})"


def write_metrics(
    spark: SparkSession,
    ref: TableRef,
    rows: Sequence[tuple[Any, ...]],
    *,
    ds: str,
    run_id: str,
    settings: Any,
    from_version: int,
    replace: bool,
    against: str | None = None,
) -> bool:
    """Write the rows of one publication, where they do not stand there already; say whether they were written.

    Each row is (ordering, metric, k, segment, value, ci_low, ci_high, n).

    Args:
        spark: the session.
        ref: the table of metrics.
        rows: what was measured.
        ds: the day that was published.
        run_id: the run that published it.
        settings: how it was measured.
        from_version: the table's version before anything was read (-1: no table).
        replace: write them in place of other ones.
        against: the run that the rows are differences from, whose ordering is `against:<run>`; None: they are none.

    Raises:
        InputError: other metrics of this publication stand there, and they are not to be replaced.
        AnotherRunWon: another run wrote metrics of this publication meanwhile.
    """
    columns = written_columns(Role.METRICS)
    create_table(spark, ref, columns)
    # Sums of doubles repeat up to rounding alone.
    rounded = [[f"{value:.9g}" if isinstance(value, float) else value for value in row] for row in rows]
    made = Provenance(
        "evaluate", settings_hash(settings), settings_hash(sorted(map(str, rounded))), uuid.uuid4().hex[:12]
    )
    part = run_id if against is None else f"{run_id} {_AGAINST}{against}"
    standing = standing_partitions(spark, ref).get(part)
    if standing == made:
        return False
    if not replace and (standing is not None or _has_rows(spark, ref, part)):
        changed = "events, candidates or the former days that drift is measured against"
        if standing is None:
            changed = "what they were made from, which the log has forgotten, may"
        elif standing.settings != made.settings:
            changed = "evaluation settings"
        raise InputError(
            f"metrics of run {part} stand already, and {changed} differ since; --replace writes these in their place"
        )
    schema = ", ".join(f"{name} {type_}" for name, type_ in columns.items())
    df = spark.createDataFrame([(ds, run_id, *row) for row in rows], schema).coalesce(1)
    write_partitions(
        spark, df, ref, column=_PART, made_from={part: made}, from_version=max(0, from_version), called=Col.RUN_ID
    )
    return True


def _has_rows(spark: SparkSession, ref: TableRef, part: str) -> bool:
    table = spark.read.format("delta").load(ref.location) if ref.is_path else spark.read.table(ref.location)
    return not table.where(F.expr(_PART) == part).isEmpty()
