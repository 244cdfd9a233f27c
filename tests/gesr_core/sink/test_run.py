"""What is resumed, what counts as accepted, what differs: decided from ledger rows alone, without Spark."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import replace

import pytest

from gesr_core.errors import InputError
from gesr_core.sink.ledger import LedgerRow
from gesr_core.sink.run import JOB, PinnedTable, Pins, Run, accepted_shards, opened, unfinished
from gesr_core.sink.staging import waves

PINS = Pins(
    {"candidates": PinnedTable("/c", 3, "10:77"), "histories": PinnedTable("/h", 5, "9:1")},
    {"path": "/k/1", "id": "k1", "model": "gesr"},
    {"path": "/i/1", "version": "i1", "sha256": "ab"},
    "conf",
    {"batch_pairs": 32, "batch_bytes": None, "item_table_bytes": None},
)
RUN = Run("2024-03-10", "scores", "r1", 0, PINS)


def test_unfinished_work_is_resumed_from_its_own_pins() -> None:
    found = unfinished([RUN.opening()], generation=0, checkpoint_id=None, configuration="conf")
    assert found is not None
    assert (found.run.run_id, found.run.pins, found.refusal) == ("r1", PINS, None)
    assert found.run.work_id == replace(RUN, run_id="r2").work_id


def test_the_newest_refusal_comes_with_the_work_that_was_refused() -> None:
    refusal, resumed = RUN.row("gate_refused", details={"checks": []}), replace(RUN, run_id="r2", resumes="r1")
    other = replace(RUN, run_id="r3", pins=replace(PINS, parts={1: 2}))
    found = unfinished(
        [RUN.opening(), refusal, resumed.opening()], generation=0, checkpoint_id=None, configuration="conf"
    )
    assert found is not None
    assert (found.run.run_id, found.refusal) == ("r2", refusal)
    found = unfinished(
        [RUN.opening(), refusal, other.opening()], generation=0, checkpoint_id=None, configuration="conf"
    )
    assert found is not None
    assert (found.run.run_id, found.refusal) == ("r3", None)


def test_shards_of_other_code_are_not_taken_over() -> None:
    ours, theirs = {"code": "2"}, {"code": "1"}
    made = replace(RUN, pins=replace(PINS, made_by=theirs))
    asked = {"generation": 0, "checkpoint_id": None, "configuration": "conf"}
    assert unfinished([made.opening()], **asked, made_by=ours) is None  # type: ignore[arg-type]
    assert unfinished([made.opening()], **asked, made_by=theirs) is not None  # type: ignore[arg-type]
    # Nor do they count for the same pins otherwise.
    assert made.work_id != replace(made, pins=replace(PINS, made_by=ours)).work_id


@pytest.mark.parametrize(
    ("generation", "checkpoint_id", "configuration"), [(1, None, "conf"), (0, "k2", "conf"), (0, None, "other")]
)
def test_published_or_other_work_is_not_resumed(generation: int, checkpoint_id: str | None, configuration: str) -> None:
    found = unfinished([RUN.opening()], generation=generation, checkpoint_id=checkpoint_id, configuration=configuration)
    assert found is None


def test_work_is_named_by_what_is_scored_and_not_by_how_long_trials_took() -> None:
    def named(**changes: object) -> str:
        return replace(RUN, pins=replace(PINS, **changes)).work_id  # type: ignore[arg-type]

    assert named(form={"precision": "bf16", "compiled": "off", "trials": [{"seconds": 1.0}]}) == named(
        form={"precision": "bf16", "compiled": "off", "trials": [{"seconds": 1.1}]}
    )
    others = [named(form={"precision": "bf16", "compiled": "off"}), named(parts={3: 2}), named(parts={3: 4}), named()]
    assert len(set(others)) == 4
    # Work of a version that knew neither parts nor forms keeps its name.
    pins = {name: value for name, value in PINS.to_json().items() if name not in ("parts", "form", "made_by")}
    text = json.dumps([RUN.ds, RUN.target, RUN.generation, pins], sort_keys=True)
    assert named() == hashlib.sha256(text.encode()).hexdigest()[:20]


def test_a_run_that_the_ledger_lacks_is_an_error() -> None:
    with pytest.raises(InputError, match="the ledger has no such run"):
        opened([RUN.opening()], "r9")


def test_the_first_accepted_attempt_of_a_shard_counts_and_other_work_does_not() -> None:
    def accepted(shard: int, attempt_id: str, work_id: str) -> LedgerRow:
        return RUN.row("shard_accepted", shard=shard, attempt_id=attempt_id, details={"work_id": work_id})

    rows = [accepted(1, "a", "w"), accepted(1, "b", "w"), accepted(2, "c", "x"), accepted(0, "b", "w")]
    assert {shard: row.attempt_id for shard, row in accepted_shards(rows, "w").items()} == {1: "a", 0: "b"}


def test_versions_and_paths_may_move_but_content_may_not() -> None:
    moved = replace(PINS, inputs={"candidates": PinnedTable("/d", 8, "10:77"), "histories": PINS.inputs["histories"]})
    assert PINS.differences(moved) == []
    changed = replace(
        PINS,
        inputs={"candidates": PinnedTable("/c", 4, "10:78")},
        checkpoint={**PINS.checkpoint, "id": "k2"},
        item_states={**PINS.item_states, "version": "i2"},
        configuration="other",
    )
    assert [d.split(" ")[0] for d in PINS.differences(changed)] == ["candidates", "item", "checkpoint", "configuration"]


def test_pins_survive_the_ledger() -> None:
    assert Pins.from_json(PINS.to_json()) == PINS
    cut = replace(PINS, parts={11: 4, 2: 3})
    assert Pins.from_json(json.loads(json.dumps(cut.to_json()))) == cut
    older = {name: value for name, value in PINS.to_json().items() if name not in ("sizes", "parts")}
    assert Pins.from_json(older) == replace(PINS, sizes={})
    assert RUN.opening().job == JOB


def test_waves_cover_the_missing_shards_once() -> None:
    assert list(waves([0, 2, 3, 7, 8], size=2)) == [[0, 2], [3, 7], [8]]


def test_a_ledger_row_keeps_its_time() -> None:
    when = dt.datetime(2024, 3, 10, tzinfo=dt.timezone.utc)
    assert RUN.row("run_opened", recorded_at=when).recorded_at == when
