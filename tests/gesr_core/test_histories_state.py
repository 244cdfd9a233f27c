"""What an update decides, without a table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gesr_core.errors import InputError
from gesr_core.histories_state import (
    Action,
    Commit,
    HistoriesState,
    changes_since,
    newest_state,
    plan_update,
    require_state,
)

STATE = HistoriesState(as_of="2024-01-10", events_table="t", events_version=7, max_events=64, shards=16)


@pytest.mark.parametrize(
    ("current", "action", "reason"),
    [
        (None, Action.REBUILD, "no update has recorded"),
        (STATE, Action.NOTHING, "stand at 2024-01-10 and know every event up to version 7"),
        (replace(STATE, as_of="2024-01-09"), Action.UPDATE, "from 2024-01-09"),
        (replace(STATE, events_version=6), Action.UPDATE, "events version 6"),
        (replace(STATE, as_of="2024-01-11"), Action.BESIDE, "2024-01-10 is older than the histories"),
        (replace(STATE, max_events=32), Action.REBUILD, "max_events was 32 and is 64 now"),
        (replace(STATE, shards=8), Action.REBUILD, "shards was 8 and is 16 now"),
        (replace(STATE, events_table="u"), Action.REBUILD, "events is another table"),
        (replace(STATE, events_version=8), Action.REBUILD, "events is another table"),
    ],
)
def test_the_plan_follows_from_where_the_histories_stand(
    current: HistoriesState | None, action: Action, reason: str
) -> None:
    plan = plan_update(current, STATE)
    assert plan.action is action
    assert reason in plan.reason


def test_an_older_day_that_is_there_already_needs_nothing() -> None:
    newer = replace(STATE, as_of="2024-02-01")
    assert plan_update(newer, STATE, beside=STATE).action is Action.NOTHING
    assert plan_update(newer, STATE, beside=replace(STATE, events_version=6)).action is Action.BESIDE
    assert plan_update(newer, STATE, beside=STATE, rebuild=True).action is Action.BESIDE


@pytest.mark.parametrize(
    ("commits", "state"),
    [
        ([], None),
        ([Commit(1, "WRITE", STATE.to_json())], STATE),
        ([Commit(2, "OPTIMIZE", None), Commit(1, "MERGE", STATE.to_json())], STATE),
        ([Commit(2, "SET TBLPROPERTIES", STATE.to_json()), Commit(1, "MERGE", None)], STATE),
        ([Commit(2, "DELETE", None), Commit(1, "MERGE", STATE.to_json())], None),
        ([Commit(2, "RESTORE", "by hand"), Commit(1, "MERGE", STATE.to_json())], None),
        ([Commit(2, "WRITE", '{"some": "json"}'), Commit(1, "MERGE", STATE.to_json())], None),
        ([Commit(0, "CREATE TABLE", None)], None),
    ],
)
def test_the_state_is_that_of_the_newest_rows(commits: list[Commit], state: HistoriesState | None) -> None:
    assert newest_state(commits) == state


def test_a_day_beside_others_is_found_by_its_own_commit() -> None:
    other = replace(STATE, as_of="2024-01-05")
    commits = [Commit(2, "WRITE", STATE.to_json()), Commit(1, "WRITE", other.to_json())]
    assert newest_state(commits, as_of="2024-01-05") == other
    assert newest_state(commits, as_of="2024-01-04") is None


@pytest.mark.parametrize(
    ("commits", "since", "as_of", "versions"),
    [
        ([], 0, None, []),
        ([Commit(2, "OPTIMIZE", None), Commit(1, "MERGE", STATE.to_json())], 1, None, []),
        ([Commit(2, "OPTIMIZE", None), Commit(1, "MERGE", STATE.to_json())], 0, None, [1]),
        ([Commit(3, "DELETE", None), Commit(2, "WRITE", STATE.to_json())], 1, None, [3, 2]),
        # Where several days stand side by side, only the day's own commits count.
        ([Commit(2, "WRITE", STATE.to_json())], 0, "2024-01-10", [2]),
        ([Commit(2, "WRITE", STATE.to_json())], 0, "2024-01-09", []),
        ([Commit(3, "DELETE", None)], 0, "2024-01-10", []),
    ],
)
def test_what_moved_rows_since_a_version(
    commits: list[Commit], since: int, as_of: str | None, versions: list[int]
) -> None:
    assert [commit.version for commit in changes_since(commits, since, as_of=as_of)] == versions


def test_who_brought_histories_to_a_state_is_known_and_is_no_difference() -> None:
    mine = replace(STATE, run_id="mine")
    assert mine == STATE
    found = HistoriesState.from_json(mine.to_json())
    assert found is not None
    assert found.run_id == "mine"
    # As an earlier version wrote it.
    older = json.loads(STATE.to_json())
    del older["run_id"]
    assert HistoriesState.from_json(json.dumps(older)) == STATE


@pytest.mark.parametrize(
    ("ds", "max_events", "shards", "message"),
    [
        (
            "2024-01-11",
            64,
            16,
            "histories stand at 2024-01-10, not at 2024-01-11: run jobs/update_histories.py --ds 2024-01-11",
        ),
        ("2024-01-10", 32, 16, "made with histories.max_events=64, which is 32 now"),
        ("2024-01-10", 64, 8, "made with scoring.shards=16, which is 8 now"),
    ],
)
def test_histories_that_do_not_fit_are_refused(ds: str, max_events: int, shards: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_state(STATE, ds=ds, max_events=max_events, shards=shards)
