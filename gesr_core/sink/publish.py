"""The publishing commit: fenced, read back, and finished idempotently. Driver only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pyspark.sql import DataFrame, functions as F

from gesr_core.config import TableRef
from gesr_core.errors import AnotherRunWon
from gesr_core.failpoints import reach
from gesr_core.names import Col
from gesr_core.sink.commits import commit_fenced
from gesr_core.sink.run import Publication, Run
from gesr_core.sink.tables import append, replace_where

ReadPublication = Callable[[], Publication | None]


def publish(
    rows: DataFrame, ref: TableRef, run: Run, *, manifest: Mapping[str, Any], read: ReadPublication, output_files: int
) -> int:
    """Replace the `ds` of the target by the accepted rows in one commit and return its generation.

    The commit is fenced by (application id = target and `ds`, version = generation read at opening + 1): Delta skips a
    commit whose version was used already, in silence, so afterwards the rows of the `ds` are read back.

    Args:
        rows: accepted staging rows.
        ref: the target table.
        run: the open run.
        manifest: what it read and did; becomes the commit's user metadata.
        read: reads what stands for the `ds` in the newest version of the target.
        output_files: files of the publication.

    Raises:
        AnotherRunWon: another run's publication stands for this `ds`.
        GesrError: conflicts that no publisher of this `ds` caused (a compaction) did not end.
    """
    generation = run.generation + 1
    scores = score_rows(rows, run, generation=generation)
    placed = scores.repartition(output_files, Col.USER_ID).sortWithinPartitions(Col.USER_ID)
    txn = (f"gesr/{run.target}/{run.ds}", generation)

    def write() -> None:
        replace_where(
            placed, ref, column=Col.DS, value=run.ds, metadata=json.dumps(manifest), txn=txn, check=not_overtaken
        )
        reach("published")

    def not_overtaken() -> None:
        refuse_other(read(), run)

    def stands() -> bool:
        standing = read()
        return standing is not None and standing.run_id == run.run_id

    commit_fenced(write, refuse_other=not_overtaken, stands=stands, where=ref.location)
    if not stands():
        raise AnotherRunWon(_won(read(), run))
    return generation


def quarantine(rows: DataFrame, ref: TableRef, run: Run) -> None:
    """Append what the run rejected, once: a repeated call with the same run changes nothing."""
    entries = rows.select(Col.USER_ID, F.explode(Col.REJECTED).alias("entry")).select(
        F.lit(run.ds).alias(Col.DS),
        F.lit(run.run_id).alias(Col.RUN_ID),
        F.lit("candidates").alias("origin"),
        F.col(Col.USER_ID).cast("string").alias(Col.USER_ID),
        F.col(f"entry.{Col.ITEM_ID}").cast("string").alias(Col.ITEM_ID),
        F.col(f"entry.{Col.REASON}").alias(Col.REASON),
    )
    append(entries.coalesce(1), ref, txn=(f"gesr/quarantine/{run.run_id}", 1))


def score_rows(rows: DataFrame, run: Run, *, generation: int) -> DataFrame:
    """Return the rows of `scores` that a run publishes as this generation, from its accepted staging rows."""
    return rows.where(F.size(Col.RANKED) > 0).select(
        F.lit(run.ds).alias(Col.DS),
        Col.USER_ID,
        Col.RANKED,
        F.lit(generation).cast("bigint").alias(Col.GENERATION),
        F.lit(run.pins.checkpoint["id"]).alias(Col.MODEL_VERSION),
        F.lit(run.run_id).alias(Col.RUN_ID),
    )


def refuse_other(standing: Publication | None, run: Run) -> None:
    """Stop early where the fence would skip the commit anyway.

    Raises:
        AnotherRunWon: another run published this `ds` since `run` opened.
    """
    if standing is not None and standing.generation > run.generation and standing.run_id != run.run_id:
        raise AnotherRunWon(_won(standing, run))


def _won(standing: Publication | None, run: Run) -> str:
    winner = f"run {standing.run_id} (generation {standing.generation})" if standing else "nothing of ours"
    return f"ds {run.ds} of {run.target} holds {winner}, not run {run.run_id}; nothing was changed by this run"
