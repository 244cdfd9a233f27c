"""Give a table of scores the columns of new tasks: metadata alone, no row is written again. Driver only."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import SparkSession, types as T

from gesr_core.config import TableRef
from gesr_core.errors import InputError
from gesr_core.names import Col, logit
from gesr_core.sink.commits import past_conflicts
from gesr_core.sink.tables import commit_lock


def logits_to_add(schema: T.StructType, *, tasks: Sequence[str], where: str) -> list[tuple[str, str]]:
    """Return what `ranked` lacks of the tasks, in their order: (the field, the field that it comes after).

    Raises:
        InputError: `ranked` holds a field of no such task, or the fields in another order, which adding cannot mend.
    """
    ranked = schema[Col.RANKED].dataType
    assert isinstance(ranked, T.ArrayType)
    assert isinstance(ranked.elementType, T.StructType)
    found = ranked.elementType.fieldNames()
    wanted = [Col.ITEM_ID, Col.RANK, Col.SCORE, *map(logit, tasks)]
    if found != [name for name in wanted if name in found]:
        raise InputError(
            f"{where}: ranked holds {', '.join(found)}, which does not become {', '.join(wanted)} by adding fields "
            "alone; put labels.tasks into the order of the table, or publish to another --target"
        )
    return [(name, wanted[place - 1]) for place, name in enumerate(wanted) if name not in found]


def add_logits(spark: SparkSession, ref: TableRef, additions: Sequence[tuple[str, str]]) -> None:
    """Add the fields, one commit each; rows that are there hold null in them.

    Stopped in between, the rest is added by the next call.
    """
    for name, after in additions:
        statement = f"ALTER TABLE {ref.sql_name} ADD COLUMNS ({Col.RANKED}.element.`{name}` FLOAT AFTER `{after}`)"

        def add(statement: str = statement) -> None:
            with commit_lock(ref):
                spark.sql(statement)

        past_conflicts(add, where=ref.location)
