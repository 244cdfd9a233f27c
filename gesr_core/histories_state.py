"""What a table of histories stands at, and what an update therefore has to do. Driver only; reads no table but its log.

The state belongs to a table version: it is the user metadata of the commit that made it, never a column of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Final

from pyspark.sql import SparkSession

from gesr_core.config import TableRef
from gesr_core.errors import InputError

_FORM: Final = "gesr.histories"
# Commits that move no row: the state of the version before them still holds.
_MAINTENANCE: Final = frozenset(
    {
        "OPTIMIZE",
        "REORG",
        "VACUUM START",
        "VACUUM END",
        "SET TBLPROPERTIES",
        "UNSET TBLPROPERTIES",
        "ADD CONSTRAINT",
        "DROP CONSTRAINT",
        "CHANGE COLUMN",
        "CLUSTER BY",
        "COMPUTE STATS",
        "UPGRADE PROTOCOL",
    }
)


@dataclass(frozen=True)
class HistoriesState:
    """The request time that histories stand at, and everything else that decides their rows."""

    as_of: str
    events_table: str  # Delta's id of the table: another one was created since when it differs
    events_version: int
    max_events: int
    shards: int
    # Who brought them there; two runs may want the same state.
    run_id: str = field(default="", compare=False)

    def to_json(self) -> str:
        """Return the commit's user metadata."""
        return json.dumps({"form": _FORM, **asdict(self)}, sort_keys=True)

    @staticmethod
    def from_json(text: str | None) -> HistoriesState | None:
        """Return the state that a commit's user metadata holds, or None if it is somebody else's."""
        try:
            values = json.loads(text or "null")
        except json.JSONDecodeError:
            return None
        if not isinstance(values, dict) or values.pop("form", None) != _FORM:
            return None
        return HistoriesState(**values)


@dataclass(frozen=True)
class Commit:
    """One line of a Delta table's history."""

    version: int
    operation: str
    metadata: str | None
    metrics: Mapping[str, str] = field(default_factory=dict)


def read_commits(spark: SparkSession, ref: TableRef) -> list[Commit]:
    """Return the table's history, newest first, as far back as Delta keeps it."""
    lines = spark.sql(f"DESCRIBE HISTORY {ref.sql_name}")
    columns = lines.select("version", "operation", "userMetadata", "operationMetrics").orderBy(
        "version", ascending=False
    )
    return [Commit(row[0], row[1], row[2], row[3] or {}) for row in columns.collect()]


def newest_state(commits: Sequence[Commit], *, as_of: str | None = None) -> HistoriesState | None:
    """Return the state that the newest version stands at, or None where it cannot be told.

    Args:
        commits: the table's history, newest first.
        as_of: look for this day's own commit only, in a table that holds several days side by side.
    """
    for commit in commits:
        state = HistoriesState.from_json(commit.metadata)
        if state is not None and as_of in (None, state.as_of):
            return state
        # A foreign change of rows (a RESTORE, somebody's DELETE): what stands there now, nobody wrote down.
        if state is None and commit.operation not in _MAINTENANCE:
            return None
    return None


def changes_since(commits: Sequence[Commit], version: int, *, as_of: str | None = None) -> list[Commit]:
    """Return the commits after a version that moved rows or what they stand at, newest first.

    Args:
        commits: the table's history, newest first.
        version: the version that somebody read.
        as_of: count the commits of this day alone, in a table that holds several days side by side.
    """
    found = []
    for commit in commits:
        state = HistoriesState.from_json(commit.metadata)
        concerns = (commit.operation not in _MAINTENANCE) if state is None else as_of in (None, state.as_of)
        if commit.version > version and concerns and not (as_of and state is None):
            found.append(commit)
    return found


class Action(str, Enum):
    """What an update of the histories does."""

    NOTHING = "nothing"
    UPDATE = "update"
    REBUILD = "rebuild"
    BESIDE = "beside"


@dataclass(frozen=True)
class Plan:
    """The action, and the reason that a person is told."""

    action: Action
    reason: str


def plan_update(
    current: HistoriesState | None,
    wanted: HistoriesState,
    *,
    beside: HistoriesState | None = None,
    rebuild: bool = False,
) -> Plan:
    """Decide how histories get from the state they stand at to the wanted one.

    Args:
        current: what `histories` stand at.
        wanted: the day, and what decides the rows.
        beside: what `histories_at` holds of that day.
        rebuild: make them anew even so; an older day stays beside the newest.
    """
    if current is None:
        return Plan(Action.REBUILD, "no update has recorded where the histories stand")
    if wanted.as_of < current.as_of:
        if beside == wanted and not rebuild:
            return Plan(Action.NOTHING, f"histories_at holds {wanted.as_of} already")
        return Plan(Action.BESIDE, f"{wanted.as_of} is older than the histories, which stand at {current.as_of}")
    if rebuild:
        return Plan(Action.REBUILD, "--rebuild")
    if current == wanted:
        seen = f"every event up to version {wanted.events_version} of events"
        return Plan(Action.NOTHING, f"histories stand at {wanted.as_of} and know {seen}")
    for name in ("max_events", "shards"):
        before, after = getattr(current, name), getattr(wanted, name)
        if before != after:
            return Plan(Action.REBUILD, f"{name} was {before} and is {after} now")
    if current.events_table != wanted.events_table or current.events_version > wanted.events_version:
        return Plan(Action.REBUILD, "events is another table than the one that the histories were made from")
    return Plan(Action.UPDATE, f"from {current.as_of} (events version {current.events_version})")


def require_state(state: HistoriesState, *, ds: str, max_events: int, shards: int) -> None:
    """Check that histories stand at `ds` and were made under the present configuration.

    Raises:
        InputError: they do not; it says what to run.
    """
    remedy = f"run jobs/update_histories.py --ds {ds}"
    if state.as_of != ds:
        raise InputError(f"histories stand at {state.as_of}, not at {ds}: {remedy}")
    for key, made_with, value in (
        ("histories.max_events", state.max_events, max_events),
        ("scoring.shards", state.shards, shards),
    ):
        if made_with != value:
            raise InputError(f"the histories of {ds} were made with {key}={made_with}, which is {value} now: {remedy}")
