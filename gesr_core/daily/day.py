"""The tables that a run of score_daily writes and decides by, for one (ds, target). Driver only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import Config, TableRef
from gesr_core.daily.pinning import Pinned
from gesr_core.errors import InputError
from gesr_core.io.daily import item_type
from gesr_core.io.tables import read_table, require_columns, table_exists
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.ledger import LedgerRow, read_ledger
from gesr_core.sink.run import JOB, Publication, read_publication
from gesr_core.sink.tables import create_table


@dataclass(frozen=True)
class Day:
    """The tables of one (ds, target) in one session."""

    spark: SparkSession
    config: Config
    ds: str
    target: str

    @property
    def scores_ref(self) -> TableRef:
        return self.config.table(Role.SCORES, target=self.target)

    @property
    def ledger_ref(self) -> TableRef:
        return self.config.table(Role.LEDGER)

    def standing(self) -> Publication | None:
        """What stands for the `ds` in the newest version of the target."""
        if not table_exists(self.spark, self.scores_ref):
            return None
        return read_publication(read_table(self.spark, self.scores_ref), self.ds)

    def ledger(self) -> list[LedgerRow]:
        return read_ledger(self.spark, self.ledger_ref, job=JOB, ds=self.ds, target=self.target)

    def staging(self) -> DataFrame:
        return read_table(self.spark, self.config.table(Role.STAGING))

    def has_staging(self) -> bool:
        return table_exists(self.spark, self.config.table(Role.STAGING))

    def create_tables(self, pinned: Pinned) -> None:
        """Create what the run writes, with the id types of its candidates."""
        candidates = pinned.inputs[Role.CANDIDATES].df
        item = item_type(candidates, Col.CANDIDATES)
        user = candidates.schema[Col.USER_ID].dataType.simpleString()
        tasks = pinned.checkpoint.features.tasks
        feed = {"delta.enableChangeDataFeed": "true"}
        for role, ref in ((Role.STAGING, self.config.table(Role.STAGING)), (Role.SCORES, self.scores_ref)):
            columns = written_columns(role, user=user, item=item, tasks=tasks)
            create_table(self.spark, ref, columns, properties=feed if role is Role.SCORES else {})
        create_table(self.spark, self.config.table(Role.QUARANTINE), written_columns(Role.QUARANTINE))
        for role, ref, remedy in (
            (
                Role.SCORES,
                self.scores_ref,
                "publish to another --target or, for a new task, add its column: jobs/migrate.py",
            ),
            (
                Role.STAGING,
                self.config.table(Role.STAGING),
                "for a new task, add its column: jobs/migrate.py; else it holds unfinished runs alone: finish them "
                "with the version that began them or give them up, and remove it, or give this one a staging of its "
                "own (--set tables.staging.location=...)",
            ),
        ):
            self.require_columns(ref, written_columns(role, user=user, item=item, tasks=tasks), remedy=remedy)

    def require_columns(self, ref: TableRef, columns: Mapping[str, str], *, remedy: str) -> None:
        """Check that a table that is there has the columns that this run writes.

        Raises:
            InputError: it lacks one, or has it with another type.
        """
        table = read_table(self.spark, ref)
        require_columns(table, list(columns), where=f"{ref.role} ({ref.location})", remedy=remedy)
        for name, expected in columns.items():
            found = table.schema[name].dataType.simpleString()
            if found != expected:
                raise InputError(
                    f"{ref.role} ({ref.location}): column {name!r} is {found}, but this checkpoint writes {expected}; "
                    f"{remedy}"
                )
