"""What the page shows, as plain values, and how entries of the ledger become them. Runs anywhere; pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

from gesr_core.secrets import masked

STAGES: Final = {
    "decode_s": "decode (Arrow to tensors)",
    "compute_s": "compute (the model)",
    "encode_s": "encode (back to Arrow)",
    "load_s": "load (model, item states)",
}


class Entry(Protocol):
    """An entry of the ledger."""

    @property
    def kind(self) -> str: ...
    @property
    def ds(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def generation(self) -> int | None: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def elapsed_s(self) -> float | None: ...
    @property
    def details(self) -> Mapping[str, Any]: ...
    @property
    def recorded_at(self) -> dt.datetime | None: ...


@dataclass(frozen=True)
class Input:
    """A pinned input table; `rows` is what the `ds` reads of it, None where the digest does not say."""

    role: str
    version: int
    location: str
    rows: int | None


@dataclass(frozen=True)
class RunFacts:
    """The manifest of a run, as far as a person asks for it. `form` is how the model was run, as words."""

    run_id: str
    generation: int
    resumes: str | None
    model: str
    checkpoint_id: str
    items_version: str
    configuration: str
    inputs: tuple[Input, ...]
    form: str
    code: str
    versions: Mapping[str, str]
    devices: tuple[str, ...]
    opened_at: dt.datetime | None
    published_at: dt.datetime | None
    elapsed_s: float | None


@dataclass(frozen=True)
class Step:
    """A step of the run by the clock, between two entries of the ledger."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Took:
    """What scoring took in the workers, added up; `stages` are seconds by the keys of `STAGES`."""

    stages: Mapping[str, float]
    pairs: int
    padded_pairs: int
    requests: int
    windows: int
    loads: int
    halved: int
    bytes_in: int
    bytes_out: int
    peak_bytes: int

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    @property
    def pairs_per_s(self) -> float | None:
        """Pairs per second of one worker; None where nothing was measured."""
        return self.pairs / self.seconds if self.seconds else None

    @staticmethod
    def from_work(work: Mapping[str, Any]) -> Took:
        """Take what the ledger keeps as `work`; of an earlier version it is empty."""
        numbers = {name: work.get(name, 0) for name in Took.__dataclass_fields__ if name not in ("stages", "halved")}
        stages = {name: float(work.get(name, 0.0)) for name in STAGES}
        return Took(stages=stages, halved=len(work.get("halved", ())), **numbers)


@dataclass(frozen=True)
class Shard:
    """A shard; `run_id` scored it, in `parts` parts, and `took` is its workers' time."""

    shard: int
    users: int
    candidates: int
    parts: int
    run_id: str
    took: Took


@dataclass(frozen=True)
class Check:
    """A check of the gate."""

    name: str
    value: str
    bound: str
    verdict: str


@dataclass(frozen=True)
class Scores:
    """How a publication's scores are distributed: `shares` of its pairs in the bins between `edges` (one more)."""

    ds: str
    checkpoint_id: str
    pairs: int
    edges: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class MetricRow:
    """A row of `metrics`."""

    run_id: str
    ordering: str
    metric: str
    k: int | None
    segment: str
    value: float
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True)
class RunBeside:
    """A publication of the same `ds` that has metrics; None: the ledger does not know it."""

    run_id: str
    target: str | None
    model: str | None
    checkpoint_id: str | None
    generation: int | None


@dataclass(frozen=True)
class Rejected:
    """How many rows were quarantined for a reason, and of how many users."""

    origin: str
    reason: str
    rows: int
    users: int


@dataclass(frozen=True)
class Event:
    """An event of a history."""

    at: dt.datetime
    action: str
    item_id: str
    value: float | None


@dataclass(frozen=True)
class Ranked:
    """A published pair: where retrieval had it from, how often the history names the item, whether it was bought.

    `sources` and `times_in_history` are None where what the run read is gone.
    """

    rank: int
    item_id: str
    score: float
    logits: Mapping[str, float]
    sources: str | None
    times_in_history: int | None
    bought: bool


@dataclass(frozen=True)
class Purchase:
    """An item that a user bought in the label window; `retrieved` is None where what the run read is gone."""

    item_id: str
    rank: int | None
    retrieved: bool | None


@dataclass(frozen=True)
class SampleUser:
    """A user with all that there is to say; `history` is newest first, `ranked` the first of `published` pairs."""

    user_id: str
    features: Mapping[str, str]
    history: tuple[Event, ...]
    history_events: int | None
    ranked: tuple[Ranked, ...]
    published: int
    candidates: int | None
    purchases: tuple[Purchase, ...]


@dataclass(frozen=True)
class Samples:
    """Some users; `events_until` is the newest event that is known, `lost` why what the run read is not shown."""

    task: str
    window: tuple[str, str]
    events_until: dt.datetime | None
    users: tuple[SampleUser, ...]
    lost: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything on the page. `counts` are of the publication, `scores` end with its own; `env` is for commands."""

    ds: str
    target: str
    env: str
    made_at: dt.datetime
    run: RunFacts
    counts: Mapping[str, int]
    steps: tuple[Step, ...]
    took: Took
    shards: tuple[Shard, ...]
    checks: tuple[Check, ...]
    scores: tuple[Scores, ...]
    metrics: tuple[MetricRow, ...]
    beside: tuple[RunBeside, ...]
    rejected: tuple[Rejected, ...]
    samples: Samples


def run_facts(opening: Entry, recorded: Entry | None, *, accepted: Mapping[int, Entry], project: str = "") -> RunFacts:
    """Read the facts of a run from its opening and, where it lived to make one, its publication's entry.

    Args:
        opening: the entry that pins what the run reads.
        recorded: the entry of its publication.
        accepted: the accepted attempt of each shard.
        project: the folder that locations are shown relative to, where they lie in it.
    """
    pins = opening.details["pins"]
    made_by, form = pins.get("made_by", {}), pins.get("form", {})
    devices = {name for row in accepted.values() for name in row.details.get("work", {}).get("devices", ())}
    return RunFacts(
        run_id=opening.run_id,
        generation=int(opening.generation or 0) + 1,
        resumes=opening.details.get("resumes"),
        model=pins["checkpoint"]["model"],
        checkpoint_id=pins["checkpoint"]["id"],
        items_version=str(pins["item_states"]["version"]),
        configuration=pins["configuration"],
        inputs=tuple(_input(role, table, project) for role, table in pins["inputs"].items()),
        form=f"{form.get('precision', 'fp32')}, compile {form.get('compile', 'off')}",
        code=made_by.get("code", "not recorded"),
        versions=made_by.get("versions", {}),
        devices=tuple(sorted(devices)),
        opened_at=opening.recorded_at,
        published_at=recorded.recorded_at if recorded else None,
        elapsed_s=recorded.elapsed_s if recorded else None,
    )


def _input(role: str, table: Mapping[str, Any], project: str) -> Input:
    rows, _, _ = str(table.get("digest", "")).partition(":")
    location = str(table["location"])
    shown = location.removeprefix(f"{project}/") if project else location
    return Input(role, int(table["version"]), masked(shown), int(rows) if rows.isdigit() else None)


def counts_of(accepted: Mapping[int, Entry], gate: Mapping[str, Any]) -> dict[str, int]:
    """Return what the gate counted of the accepted shards; what they counted themselves where it recorded nothing."""
    staged = gate.get("staged", {})
    wanted = ("users", "users_scored", "candidates_in", "candidates_scored", "candidates_rejected", "ranked")
    if staged:
        return {name: int(staged[name]) for name in wanted if name in staged}
    names = sorted({name for row in accepted.values() for name in row.counts})
    return {name: sum(row.counts.get(name, 0) for row in accepted.values()) for name in names}


def steps_of(
    opening: Entry, accepted: Mapping[int, Entry], gate: Entry | None, recorded: Entry | None
) -> tuple[Step, ...]:
    """Return the steps that the run itself took, by the times of its entries; a resume did not take them all."""
    own = [row.recorded_at for row in accepted.values() if row.run_id == opening.run_id and row.recorded_at]
    marks = [("opened", opening.recorded_at)]
    marks += [(f"scoring, {len(own)} shards of this run", max(own))] if own else []
    if gate is not None and gate.run_id == opening.run_id:
        marks.append(("gate", gate.recorded_at))
    marks += [("publishing and recording", recorded.recorded_at)] if recorded else []
    return tuple(_between(marks))


def _between(marks: Sequence[tuple[str, dt.datetime | None]]) -> Iterator[Step]:
    known = [(name, when) for name, when in marks if when is not None]
    for (_, since), (name, until) in pairwise(known):
        yield Step(name, max(0.0, (until - since).total_seconds()))


def took_together(shards: Sequence[Shard]) -> Took:
    """Add up the work of shards; the peak is the largest of any."""
    tooks = [shard.took for shard in shards]
    summed = [name for name in Took.__dataclass_fields__ if name not in ("stages", "peak_bytes")]
    return Took(
        stages={name: sum(took.stages[name] for took in tooks) for name in STAGES},
        peak_bytes=max((took.peak_bytes for took in tooks), default=0),
        **{name: sum(getattr(took, name) for took in tooks) for name in summed},
    )


def shards_of(accepted: Mapping[int, Entry], *, parts: Mapping[int, int]) -> tuple[Shard, ...]:
    """Return the shards in order; `parts` names those that were cut."""
    return tuple(
        Shard(
            shard=number,
            users=row.counts.get("users", 0),
            candidates=row.counts.get("candidates_in", 0),
            parts=parts.get(number, 1),
            run_id=row.run_id,
            took=Took.from_work(row.details.get("work", {})),
        )
        for number, row in sorted(accepted.items())
    )


def checks_of(gate: Mapping[str, Any]) -> tuple[Check, ...]:
    """Return the gate's checks; none where its answer was not recorded."""
    return tuple(
        Check(
            name=check["name"],
            value=f"{float(check['value']):g}",
            bound=check["bound"],
            verdict="ok" if check["passed"] else "overruled" if check.get("accepted") else "refused",
        )
        for check in gate.get("checks", ())
    )


def scores_of(ds: str, checkpoint_id: str, gate: Mapping[str, Any]) -> Scores | None:
    """Return how the scores were distributed by a gate's answer; None where it does not say."""
    scores = gate.get("scores")
    if not scores or not scores["pairs"]:
        return None
    return Scores(ds, checkpoint_id, int(scores["pairs"]), tuple(scores["edges"]), tuple(scores["shares"]))


def former_scores(rows: Sequence[Entry]) -> list[Scores]:
    """Return the distributions of other publications, from their entries."""
    found = [scores_of(row.ds, row.details["pins"]["checkpoint"]["id"], row.details.get("gate", {})) for row in rows]
    return [scores for scores in found if scores is not None]


def run_beside(run_id: str, rows: Sequence[Entry]) -> RunBeside:
    """Return which publication a run id of `metrics` is, from the ledger's entries of that run."""
    opening = next((row for row in rows if row.kind == "run_opened"), None)
    if opening is None:
        return RunBeside(run_id, None, None, None, None)
    checkpoint = opening.details["pins"]["checkpoint"]
    return RunBeside(run_id, opening.target, checkpoint["model"], checkpoint["id"], int(opening.generation or 0) + 1)
