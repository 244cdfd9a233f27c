"""Entries of the ledger as facts of the page."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from gesr_core.report.facts import (
    Step,
    checks_of,
    counts_of,
    former_scores,
    run_beside,
    run_facts,
    scores_of,
    shards_of,
    steps_of,
    took_together,
)

OPENED = dt.datetime(2024, 3, 10, 1, tzinfo=dt.timezone.utc)
PINS: dict[str, Any] = {
    "checkpoint": {"path": "/here/c", "id": "c1", "model": "gesr"},
    "item_states": {"path": "/here/i", "version": "i1", "sha256": "5"},
    "configuration": "abc",
    "inputs": {
        "candidates": {"location": "/here/var/candidates", "version": 4, "digest": "24:99", "table_id": "t"},
        "users": {"location": "s3://name:secret@bucket/users", "version": 1, "digest": "", "table_id": "t"},
    },
    "made_by": {"code": "0.1+x", "versions": {"torch": "2"}},
}
GATE: dict[str, Any] = {
    "staged": {"users": 3, "candidates_scored": 9, "users_hash": "77", "largest_score": "nan"},
    "checks": [
        {"key": None, "name": "a", "value": 0.0, "bound": "0", "passed": True, "remedy": "", "accepted": False},
        {"key": "k", "name": "b", "value": "nan", "bound": "1", "passed": False, "remedy": "", "accepted": True},
    ],
    "scores": {"pairs": 10, "edges": [0.0, 1.0], "shares": [0.2, 0.3, 0.5]},
}


@dataclass
class Row:
    """An entry of the ledger, as far as the page reads it."""

    kind: str
    run_id: str = "mine"
    after_s: float = 0.0
    ds: str = "2024-03-10"
    target: str = "scores"
    generation: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    elapsed_s: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def recorded_at(self) -> dt.datetime:
        return OPENED + dt.timedelta(seconds=self.after_s)


OPENING = Row("run_opened", generation=1, details={"pins": PINS, "resumes": "theirs"})
WORK = {"pairs": 100, "padded_pairs": 120, "compute_s": 2.0, "load_s": 3.0, "devices": ["cpu"], "halved": [[0] * 5]}
ACCEPTED = {
    0: Row("shard_accepted", "theirs", -900.0, counts={"users": 1, "candidates_in": 5}, details={"work": WORK}),
    1: Row("shard_accepted", after_s=20.0, counts={"users": 2, "candidates_in": 6}, details={"work": WORK}),
}


def test_the_manifest_is_read_and_a_secret_in_a_location_is_not_shown() -> None:
    recorded = Row("run_published", after_s=33.0, elapsed_s=32.5)
    facts = run_facts(OPENING, recorded, accepted=ACCEPTED, project="/here")
    assert (facts.generation, facts.resumes, facts.model, facts.checkpoint_id) == (2, "theirs", "gesr", "c1")
    assert [(of.role, of.version, of.rows) for of in facts.inputs] == [("candidates", 4, 24), ("users", 1, None)]
    assert [of.location for of in facts.inputs] == ["var/candidates", "s3://***@bucket/users"]
    assert facts.form == "fp32, compile off"
    assert facts.devices == ("cpu",)
    assert facts.elapsed_s == 32.5


def test_a_run_that_did_not_live_to_record_its_publication_has_no_time_of_it() -> None:
    facts = run_facts(OPENING, None, accepted={})
    assert facts.published_at is None
    assert facts.elapsed_s is None


def test_steps_are_those_that_this_run_took() -> None:
    gate, recorded = Row("gate_passed", after_s=23.0), Row("run_published", after_s=30.0)
    assert steps_of(OPENING, ACCEPTED, gate, recorded) == (
        Step("scoring, 1 shards of this run", 20.0), Step("gate", 3.0), Step("publishing and recording", 7.0)
    )  # fmt: skip
    # All was scored, and judged, by a former run of the same work.
    theirs = Row("gate_passed", "theirs", -800.0)
    assert steps_of(OPENING, {0: ACCEPTED[0]}, theirs, recorded) == (Step("publishing and recording", 30.0),)
    assert steps_of(OPENING, {}, None, None) == ()


def test_shards_add_up() -> None:
    shards = shards_of(ACCEPTED, parts={1: 4})
    assert [(of.shard, of.run_id, of.parts, of.users) for of in shards] == [(0, "theirs", 1, 1), (1, "mine", 4, 2)]
    took = took_together(shards)
    assert (took.pairs, took.seconds, took.halved, took.pairs_per_s) == (200, 10.0, 2, 20.0)
    assert took.stages == {"decode_s": 0.0, "compute_s": 4.0, "encode_s": 0.0, "load_s": 6.0}


def test_a_ledger_of_an_earlier_version_measured_nothing() -> None:
    [shard] = shards_of({0: Row("shard_accepted")}, parts={})
    assert shard.took.pairs_per_s is None
    assert took_together([]).seconds == 0
    assert checks_of({}) == ()
    assert scores_of("d", "c", {}) is None
    assert scores_of("d", "c", {"scores": {"pairs": 0, "edges": [], "shares": [0.0]}}) is None


def test_counts_are_the_gates_or_the_shards_own() -> None:
    assert counts_of(ACCEPTED, GATE) == {"users": 3, "candidates_scored": 9}
    assert counts_of(ACCEPTED, {}) == {"users": 3, "candidates_in": 11}


def test_checks_say_what_was_overruled() -> None:
    assert [(of.name, of.value, of.verdict) for of in checks_of(GATE)] == [("a", "0", "ok"), ("b", "nan", "overruled")]


def test_former_distributions_keep_whose_they_are() -> None:
    rows = [
        Row("run_published", ds="2024-03-08", details={"pins": PINS, "gate": GATE}),
        Row("run_published", ds="2024-03-09", details={"pins": PINS}),
    ]
    [scores] = former_scores(rows)
    assert (scores.ds, scores.checkpoint_id, scores.edges, scores.shares) == (
        "2024-03-08", "c1", (0.0, 1.0), (0.2, 0.3, 0.5)
    )  # fmt: skip


def test_a_run_id_that_the_ledger_does_not_know_keeps_its_name() -> None:
    assert run_beside("gone", []).target is None
    assert run_beside("mine", [OPENING]).model == "gesr"
