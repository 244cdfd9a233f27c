"""Runs of score_daily: what a run pinned, whether it resumes, is done already or must be refused. Driver only.

A run is one execution for the key (job, `ds`, target). What it reads is pinned when it opens. The pins, not the
process, name the work: a later run of the same key that finds unfinished work with the same checkpoint and
configuration adopts its pins and its accepted shards, so a resume scores only what is missing. Publishing, not a lock,
decides between two runs that do this at once.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame, functions as F

from gesr_core.errors import InputError
from gesr_core.names import Col
from gesr_core.sink.ledger import LedgerRow

JOB = "score_daily"
REPLAY_JOB = "replay"

# (shard, attempt id) of accepted attempts whose rows are no longer in staging
Lost = frozenset[tuple[int | None, str | None]]


@dataclass(frozen=True)
class PinnedTable:
    """An input table at one version, with a digest of the content that this `ds` reads of it.

    `table_id` is Delta's: a table that was made anew counts its versions anew.
    """

    location: str
    version: int
    digest: str
    table_id: str = ""


@dataclass(frozen=True)
class Pins:
    """Everything that a run reads. `inputs` is by role; the checkpoint and item states are by path and content id.

    `sizes` is how much a worker takes on at once, `parts` into how many parts the shards are cut that hold far more
    pairs than others, `form` the model's precision and whether it is compiled, with the trials that decided it (empty:
    as it was trained): a resume has to repeat them. `made_by` is the code and the libraries that score: shards of
    others are not taken over.
    """

    inputs: Mapping[str, PinnedTable]
    checkpoint: Mapping[str, str]
    item_states: Mapping[str, str]
    configuration: str
    sizes: Mapping[str, Any]
    parts: Mapping[int, int] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        inputs = {role: vars(table) for role, table in self.inputs.items()}
        return {
            "inputs": inputs,
            "checkpoint": dict(self.checkpoint),
            "item_states": dict(self.item_states),
            "configuration": self.configuration,
            "sizes": dict(self.sizes),
            # JSON has no numbers for keys.
            "parts": [[shard, parts] for shard, parts in sorted(self.parts.items())],
            "form": dict(self.form),
            "made_by": dict(self.made_by),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Pins:
        inputs = {role: PinnedTable(**table) for role, table in values["inputs"].items()}
        # Earlier versions recorded no sizes, cut no shards, and knew one form.
        return Pins(
            inputs,
            values["checkpoint"],
            values["item_states"],
            values["configuration"],
            values.get("sizes", {}),
            dict(map(tuple, values.get("parts", []))),
            values.get("form", {}),
            values.get("made_by", {}),
        )

    def differences(self, other: Pins) -> list[str]:
        """Name what differs in content; table versions and paths may move without changing anything.

        A role that only one side has (histories that moved on to a later day) cannot be compared and does not differ.
        """
        found = [
            f"{role} (content of this ds)"
            for role in sorted({*self.inputs} & {*other.inputs})
            if self.inputs[role].digest != other.inputs[role].digest
        ]
        if self.item_states["version"] != other.item_states["version"]:
            found.append("item states")
        of_model = self.differences_of_model(checkpoint_id=other.checkpoint["id"], configuration=other.configuration)
        return [*found, *of_model]

    def differences_of_model(self, *, checkpoint_id: str, configuration: str) -> list[str]:
        """Name what differs in checkpoint and configuration, for which no table has to be read."""
        found = []
        if self.checkpoint["id"] != checkpoint_id:
            found.append(f"checkpoint ({self.checkpoint['id']} before, {checkpoint_id} now)")
        if self.configuration != configuration:
            found.append("configuration (features, labels, histories or scoring)")
        return found


@dataclass(frozen=True)
class Publication:
    """What stands in the target for a `ds`: the generation and the run that published it."""

    generation: int
    run_id: str


@dataclass(frozen=True)
class Run:
    """An open run: `generation` is the one it read when it opened (0: the `ds` was never published)."""

    ds: str
    target: str
    run_id: str
    generation: int
    pins: Pins
    resumes: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def work_id(self) -> str:
        return work_id(self.ds, self.target, self.generation, self.pins)

    def row(self, kind: str, **values: Any) -> LedgerRow:
        """Return a ledger entry of this run."""
        return LedgerRow(kind=kind, job=JOB, ds=self.ds, target=self.target, run_id=self.run_id, **values)

    def opening(self, **facts: Any) -> LedgerRow:
        """Return the entry that pins what the run reads; `facts` are what else it shall say."""
        details = {**facts, "pins": self.pins.to_json(), "work_id": self.work_id, "resumes": self.resumes}
        return self.row("run_opened", generation=self.generation, details=details)


def work_id(ds: str, target: str, generation: int, pins: Pins) -> str:
    """Name the work of scoring `ds` from these pins on top of this generation.

    How long trials of the model's form took changes no score, and is another time each time.
    """
    named = pins.to_json()
    named["form"] = {name: value for name, value in named["form"].items() if name != "trials"}
    # What an earlier version did not pin is left out where it says nothing, so that its work keeps its name.
    named = {name: value for name, value in named.items() if value or name not in ("parts", "form", "made_by")}
    text = json.dumps([ds, target, generation, named], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def new_run_id() -> str:
    """Return a fresh run id."""
    return uuid.uuid4().hex[:12]


@dataclass(frozen=True)
class Unfinished:
    """A run that did not publish, and what the gate answered to its work: None where it was not asked."""

    run: Run
    refusal: LedgerRow | None = None


def unfinished(
    rows: Sequence[LedgerRow],
    *,
    generation: int,
    configuration: str,
    checkpoint_id: str | None = None,
    reference: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> Unfinished | None:
    """Return the newest run that opened on the generation which still stands, whose work a new one may take over.

    Its configuration must be ours, its code and libraries too (`made_by`; None: whatever they were), and its checkpoint
    where one was asked for by name (`checkpoint_id`), or the registry's name for it (`reference`); an alias that moved
    since does not matter, it was pinned. The newest refusal of its work comes with it.
    """
    for row in reversed(rows):
        if row.kind != "run_opened" or row.generation != generation:
            continue
        pins = Pins.from_json(row.details["pins"])
        same_checkpoint = checkpoint_id in (None, pins.checkpoint["id"]) and reference in (
            None,
            pins.checkpoint.get("reference"),
        )
        same_code = made_by is None or pins.made_by == made_by
        if same_checkpoint and same_code and pins.configuration == configuration:
            run = Run(row.ds, row.target, row.run_id, generation, pins, details=row.details)
            return Unfinished(run, _newest_refusal(rows, row.details["work_id"]))
    return None


def _newest_refusal(rows: Sequence[LedgerRow], work: str) -> LedgerRow | None:
    runs = {row.run_id for row in rows if row.kind == "run_opened" and row.details["work_id"] == work}
    return next((row for row in reversed(rows) if row.kind == "gate_refused" and row.run_id in runs), None)


def opened(rows: Sequence[LedgerRow], run_id: str) -> Run:
    """Return the run that `run_id` opened.

    Raises:
        InputError: the ledger does not know it (it was published under another ledger).
    """
    for row in rows:
        if row.kind == "run_opened" and row.run_id == run_id:
            pins = Pins.from_json(row.details["pins"])
            return Run(row.ds, row.target, run_id, int(row.generation or 0), pins, details=row.details)
    raise InputError(
        f"run {run_id} published this ds, but the ledger has no such run; --replace scores and replaces it"
    )


def newest_generation(standing: Publication | None, rows: Sequence[LedgerRow]) -> int:
    """Return the highest generation that the `ds` ever had (0: none); a target may have been emptied or rolled back."""
    published = [int(row.generation or 0) for row in rows if row.kind in ("run_published", "generation_taken")]
    return max([standing.generation if standing else 0, *published])


def accepted_shards(rows: Sequence[LedgerRow], work: str, *, lost: Lost = frozenset()) -> dict[int, LedgerRow]:
    """Return the accepted attempt of each finished shard of a piece of work: the first that is not lost."""
    accepted: dict[int, LedgerRow] = {}
    for row in rows:
        of_work = row.kind == "shard_accepted" and row.details.get("work_id") == work
        if of_work and row.shard is not None and (row.shard, row.attempt_id) not in lost:
            accepted.setdefault(row.shard, row)
    return accepted


def gate_answer(rows: Sequence[LedgerRow], run: Run) -> LedgerRow | None:
    """Return the gate's answer that a run was published by; None where none is recorded."""
    answers = [row for row in rows if row.kind == "gate_passed" and row.details.get("work_id") == run.work_id]
    # Its own, unless what it was told is what a former run of this work was told, which is not recorded again.
    own = [row for row in answers if row.run_id == run.run_id] or answers
    return own[-1] if own else None


def not_judged(rows: Sequence[LedgerRow], gate: Mapping[str, Any]) -> Lost:
    """Return the accepted attempts that an answer of the gate is not about; none where it does not name its attempts.

    An earlier version's gate did not: then the first attempt of each shard was judged.
    """
    judged = {(shard, attempt) for attempt, shards in gate.get("attempts", {}).items() for shard in shards}
    return frozenset((r.shard, r.attempt_id) for r in rows if judged and (r.shard, r.attempt_id) not in judged)


def pin_table(
    df: DataFrame, *, location: str, version: int, table_id: str, known: PinnedTable | None = None
) -> PinnedTable:
    """Pin rows with their digest; the same version of the same table keeps the digest that is known."""
    if known is not None and (known.location, known.version, known.table_id) == (location, version, table_id):
        return known
    return PinnedTable(location, version, content_digest(df), table_id)


def content_digest(df: DataFrame) -> str:
    """Return a digest of a table's rows that ignores their order and their files.

    Two contents share a digest with a chance of about 2^-64; a null inside an array counts as if it were absent.
    """
    columns = [column for name in sorted(df.columns) for column in (F.col(name), F.col(name).isNull())]
    # A sum over decimals cannot overflow, and unlike xor it does not lose pairs of equal rows.
    total = F.coalesce(F.sum(F.xxhash64(*columns).cast("decimal(38,0)")), F.lit(0))
    row = df.agg(F.count(F.lit(1)).alias("rows"), total.cast("string").alias("total")).collect()[0]
    return f"{row['rows']}:{row['total']}"


def read_publication(scores: DataFrame, ds: str) -> Publication | None:
    """Return what stands for `ds` in a scores table, read from its rows.

    Rows of several runs side by side, which no publication of ours leaves behind, are a publication of no run: it has
    the highest generation and all their ids.
    """
    rows = scores.where(F.col(Col.DS) == ds).select(Col.GENERATION, Col.RUN_ID).distinct().collect()
    if not rows:
        return None
    run_ids = sorted({str(row[Col.RUN_ID]) for row in rows})
    return Publication(max(int(row[Col.GENERATION]) for row in rows), ", ".join(run_ids))
