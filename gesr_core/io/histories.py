"""Read the histories of a day: the newest ones, or those rebuilt beside them. Driver only."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config, TableRef
from gesr_core.errors import InputError
from gesr_core.histories_state import HistoriesState, newest_state, read_commits, require_state
from gesr_core.io.changes import CHANGE_FEED_PROPERTY
from gesr_core.io.tables import read_input, read_table, table_detail, table_exists, table_version
from gesr_core.names import Col, Role


@dataclass(frozen=True)
class PinnedHistories:
    """Where the histories of a day lie: a role, its Delta version, and what they were made from."""

    role: Role
    version: int
    state: HistoriesState


@dataclass(frozen=True)
class UpdateInputs:
    """What an update of the histories works on, pinned when it starts."""

    events: DataFrame
    has_change_feed: bool
    current: HistoriesState | None  # of histories
    beside: HistoriesState | None  # of the day in histories_at
    from_version: int  # of histories; -1: there is no such table yet
    beside_version: int  # of histories_at
    wanted: HistoriesState

    @property
    def standing(self) -> HistoriesState:
        """Where the histories stand, for an update, which starts from there.

        Raises:
            ValueError: they stand nowhere; a plan that updates them is wrong.
        """
        if self.current is None:
            raise ValueError("histories that stand nowhere cannot be updated")
        return self.current


def open_update(spark: SparkSession, config: Config, *, ds: str) -> UpdateInputs:
    """Pin `events` and see where the histories stand.

    Raises:
        InputError: `events` is missing or breaks its contract.
    """
    # First what is to be changed, then what it is made from: who read older events than a rival did finds its commit.
    current, from_version = stands_at(spark, config.table(Role.HISTORIES))
    beside, beside_version = stands_at(spark, config.table(Role.HISTORIES_AT), as_of=ds)
    ref = config.table(Role.EVENTS)
    version, detail = table_version(spark, ref), table_detail(spark, ref)
    return UpdateInputs(
        events=read_input(spark, ref, version=version),
        has_change_feed=detail.properties.get(CHANGE_FEED_PROPERTY) == "true",
        current=current,
        beside=beside,
        from_version=from_version,
        beside_version=beside_version,
        wanted=HistoriesState(
            as_of=ds,
            events_table=detail.id,
            events_version=version,
            max_events=config.histories.max_events,
            shards=config.scoring.shards,
            run_id=uuid.uuid4().hex[:12],
        ),
    )


def read_histories(
    spark: SparkSession, config: Config, *, ds: str, pinned: PinnedHistories | None = None
) -> tuple[DataFrame, PinnedHistories]:
    """Return (user_id, shard, history) of `ds`, and where it was found.

    Args:
        spark: the session.
        config: names the tables, and what the histories must have been made with.
        ds: the day.
        pinned: read these again, as a resumed run must.

    Raises:
        InputError: no histories stand at `ds`, or they were made under another configuration.
    """
    pinned = pinned or find_histories(spark, config, ds=ds)
    rows = read_table(spark, config.table(pinned.role), version=pinned.version)
    if pinned.role is Role.HISTORIES_AT:
        rows = rows.where(F.col(Col.AS_OF) == F.lit(ds))
    return rows.select(Col.USER_ID, Col.SHARD, Col.HISTORY), pinned


def find_histories(spark: SparkSession, config: Config, *, ds: str) -> PinnedHistories:
    """Return where the histories of `ds` lie: `histories` when they stand at it, else `histories_at`.

    Raises:
        InputError: neither holds them, or they were made under another configuration.
    """
    newest = _find(spark, config, role=Role.HISTORIES)
    beside = None
    if newest is None or newest.state.as_of != ds:
        beside = _find(spark, config, role=Role.HISTORIES_AT, as_of=ds)
    found = beside or newest
    if found is None:
        raise InputError(f"there are no histories yet: run jobs/update_histories.py --ds {ds}")
    require_state(found.state, ds=ds, max_events=config.histories.max_events, shards=config.scoring.shards)
    return found


def stands_at(spark: SparkSession, ref: TableRef, *, as_of: str | None = None) -> tuple[HistoriesState | None, int]:
    """Return the state of the table's newest version, None where there is none, and that version (-1: no table).

    `as_of` asks for one day of a table that holds several side by side.
    """
    if not table_exists(spark, ref):
        return None, -1
    commits = read_commits(spark, ref)
    return newest_state(commits, as_of=as_of), commits[0].version


def _find(spark: SparkSession, config: Config, *, role: Role, as_of: str | None = None) -> PinnedHistories | None:
    state, version = stands_at(spark, config.table(role), as_of=as_of)
    return PinnedHistories(role=role, version=version, state=state) if state else None
