"""What the ledger says of a publication: which entries are its own, whatever stands beside them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from gesr_core.daily.published import Published
from gesr_core.errors import InputError
from gesr_core.sink.ledger import LedgerRow
from gesr_core.sink.run import Pins, Publication, Run

PINS = Pins({}, {"id": "c", "model": "gesr", "path": "p"}, {"version": "i"}, "conf", {})
FIRST = Run("2024-03-10", "scores", "first", 0, PINS)
RESUMED = Run("2024-03-10", "scores", "resumed", 0, PINS, resumes="first")


def row(run: Run, kind: str, minute: int, **values: Any) -> LedgerRow:
    entry = run.opening() if kind == "run_opened" else run.row(kind, **values)
    return LedgerRow(**{**vars(entry), "recorded_at": dt.datetime(2024, 3, 10, 1, minute, tzinfo=dt.timezone.utc)})


def accepted(run: Run, shard: int, attempt: str, minute: int) -> LedgerRow:
    return row(run, "shard_accepted", minute, shard=shard, attempt_id=attempt, details={"work_id": run.work_id})


OPENED = [row(FIRST, "run_opened", 0), row(RESUMED, "run_opened", 5)]
SHARDS = [accepted(FIRST, 0, "a", 1), accepted(RESUMED, 1, "c", 7), accepted(FIRST, 1, "b", 8)]
GATE = {"work_id": FIRST.work_id, "attempts": {"a": [0], "b": [1]}, "checks": ["of the judged"]}
STANDING = Publication(1, "resumed")


def test_the_shards_of_a_publication_are_those_that_its_gate_judged() -> None:
    recorded = row(RESUMED, "run_published", 9, details={"gate": GATE})
    found = Published.of([*OPENED, *SHARDS, recorded], STANDING)
    assert {shard: entry.attempt_id for shard, entry in found.accepted.items()} == {0: "a", 1: "b"}
    assert (found.run.run_id, found.opening.run_id, found.recorded) == ("resumed", "resumed", recorded)
    assert found.gate["checks"] == ["of the judged"]


def test_an_answer_that_a_former_run_of_the_same_work_had_is_its_own() -> None:
    answer = row(FIRST, "gate_passed", 6, details=GATE)
    other = Run("2024-03-10", "scores", "other", 0, Pins({}, {"id": "d"}, {"version": "i"}, "conf", {}))
    of_other_work = row(other, "gate_passed", 8, details={"work_id": other.work_id, "checks": ["of other work"]})
    found = Published.of([*OPENED, *SHARDS, answer, of_other_work], STANDING)
    assert found.gate_row == answer
    assert found.gate["checks"] == ["of the judged"]
    assert found.recorded is None


def test_without_an_answer_the_first_attempt_of_each_shard_counts() -> None:
    found = Published.of([*OPENED, *SHARDS], STANDING)
    assert {shard: entry.attempt_id for shard, entry in found.accepted.items()} == {0: "a", 1: "c"}
    assert found.gate == {}
    assert found.gate_row is None


def test_a_publication_that_the_ledger_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="the ledger has no such run"):
        Published.of(OPENED, Publication(1, "elsewhere"))
