"""A run of score_daily, step by step: stage, accept, gate, publish, finish. Driver only."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import DataFrame

from gesr_core.daily.day import Day
from gesr_core.daily.manifest import manifest_of
from gesr_core.daily.pinning import Pinned
from gesr_core.daily.requests import requests_of_shards
from gesr_core.errors import AnotherRunWon, GateRefused, GesrError
from gesr_core.executors import OnGrantedGpu, gpu_profile
from gesr_core.failpoints import reach
from gesr_core.io.tables import read_table, table_version
from gesr_core.names import Col, Role
from gesr_core.runtime.worker import ScoreShards
from gesr_core.sink.gate import check_gate, count_candidates, count_staged, overrule, refused
from gesr_core.sink.ledger import LedgerRow, append_ledger, newest_published_before
from gesr_core.sink.progress import Progress
from gesr_core.sink.publish import publish, quarantine, refuse_other
from gesr_core.sink.run import JOB, Lost, Run, accepted_shards, gate_answer, not_judged
from gesr_core.sink.score_distribution import ScoreDistribution
from gesr_core.sink.staging import (
    accepted_rows,
    attempt_counts,
    by_attempt,
    clear_staging,
    new_attempt_id,
    one_partition_per_part,
    stage,
    staged_users,
    waves,
)
from gesr_core.sink.work import Work
from gesr_core.udf import result_fields, score_with_udf

log = logging.getLogger(__name__)


def gate_basis(day: Day, *, checkpoint_id: str) -> tuple[dict[str, Any], ScoreDistribution | None]:
    """Return what the gate compares with, as the ledger records it, and the scores of an earlier `ds` among it."""
    earlier = newest_published_before(
        day.spark, day.ledger_ref, job=JOB, ds=day.ds, target=day.target, checkpoint_id=checkpoint_id
    )
    scores = earlier.details.get("gate", {}).get("scores") if earlier else None
    reference = {"ds": earlier.ds, "run_id": earlier.run_id} if earlier and scores else None
    basis = {"bounds": day.config.gate.model_dump(mode="json"), "reference": reference}
    return basis, ScoreDistribution.from_json(scores) if scores else None


def score(day: Day, pinned: Pinned, task: ScoreShards, *, shards: Sequence[int]) -> DataFrame:
    """Return the score rows of some shards of what is pinned."""
    parts, scoring = pinned.pins.parts, day.config.scoring
    requests = requests_of_shards(pinned.inputs, pinned.checkpoint, scoring, ds=day.ds, shards=shards, parts=parts)
    requests = one_partition_per_part(requests, {shard: parts.get(shard, 1) for shard in shards})
    if scoring.transport == "pandas_udf":
        return score_with_udf(requests, task)
    user = requests.schema[Col.USER_ID].dataType.simpleString()
    fields = f"{Col.SHARD} int, {Col.USER_ID} {user}, {result_fields(requests, tasks=task.settings.tasks)}"
    profile = gpu_profile(day.spark, wanted=scoring.device, workers_per_gpu=scoring.workers_per_gpu)
    return requests.mapInArrow(OnGrantedGpu(task), fields, profile=profile)


def finish_for(day: Day, run: Run, rows: Sequence[LedgerRow], *, started_s: float) -> None:
    """Write what follows the publication of a run that died before it could."""
    answer = gate_answer(rows, run)
    gate = answer.details if answer else {}
    accepted = accepted_shards(rows, run.work_id, lost=not_judged(rows, gate))
    version, df = -1, None
    if day.has_staging():
        ref = day.config.table(Role.STAGING)
        version = table_version(day.spark, ref)
        staging = read_table(day.spark, ref, version=version)
        users = staged_users(staging, work_id=run.work_id)
        if all(row.counts.get("users", 0) == users.get((row.shard, row.attempt_id), 0) for row in accepted.values()):
            df = accepted_rows(staging, accepted, work_id=run.work_id)
    if df is None:
        log.warning("the staged rows of run %s are gone: what it rejected does not come to quarantine", run.run_id)
    finish(day, run, Staged(version, accepted, df), gate=gate, started_s=started_s)


def finish(day: Day, run: Run, staged: Staged, *, gate: Mapping[str, Any], started_s: float) -> None:
    """Write what follows a publication; every step may be repeated without doubling anything."""
    if staged.rows is not None:
        quarantine(staged.rows, day.config.table(Role.QUARANTINE), run)
    reach("quarantined")
    counts: dict[str, int] = {}
    for row in staged.accepted.values():
        for name, value in row.counts.items():
            counts[name] = counts.get(name, 0) + value
    details = {"work_id": run.work_id, "pins": run.pins.to_json(), "work": staged.work.to_json(), "gate": gate}
    elapsed_s = time.monotonic() - started_s
    published = run.row(
        "run_published", generation=run.generation + 1, counts=counts, elapsed_s=elapsed_s, details=details
    )
    append_ledger(day.spark, day.ledger_ref, [published], once=f"run_published/{run.run_id}")
    reach("recorded")
    log.info("%s", staged.work)
    if day.has_staging():
        clear_staging(day.spark, day.config.table(Role.STAGING), work_id=run.work_id)


def _of_work(row: LedgerRow, run: Run) -> bool:
    return bool(row.details.get("work_id") == run.work_id)


@dataclass(frozen=True)
class Staged:
    """The accepted rows in one version of staging: what the gate judges is what is published.

    Another run of the same work may publish and clear staging, or accept shards of its own, at any moment.
    """

    version: int
    accepted: Mapping[int, LedgerRow]
    # None: they are gone from staging, after they were published.
    rows: DataFrame | None

    @property
    def work(self) -> Work:
        """What scoring them took."""
        return Work.together(Work.from_json(row.details.get("work", {})) for row in self.accepted.values())


def read_staged(day: Day, run: Run, *, lost: Lost = frozenset()) -> Staged:
    """Return the accepted rows as they stand now."""
    # In this order: whatever was accepted is in the version.
    accepted, ref = accepted_shards(day.ledger(), run.work_id, lost=lost), day.config.table(Role.STAGING)
    version = table_version(day.spark, ref)
    staging = read_table(day.spark, ref, version=version)
    return Staged(version, accepted, accepted_rows(staging, accepted, work_id=run.work_id))


@dataclass
class DailyRun:
    """An open run and its steps, in the order in which jobs/score_daily.py takes them."""

    day: Day
    run: Run
    pinned: Pinned
    lost: Lost = frozenset()
    accepted_checks: frozenset[str] = frozenset()
    trace_folder: str | None = None
    started_s: float = field(default_factory=time.monotonic)

    def waves(self) -> Iterator[list[int]]:
        """Yield groups of shards that nobody has finished yet; looks at the ledger again before each."""
        size = self.day.config.scoring.shards_per_wave or 2 * self.day.spark.sparkContext.defaultParallelism
        shards = range(self.day.config.scoring.shards)
        done = self._accepted()
        self.progress = Progress(shards=len(shards), done=len(done))
        log.info("%d of %d shards to score", len(shards) - len(done), len(shards))
        while missing := [shard for shard in shards if shard not in done]:
            yield next(waves(missing, size=size))
            done = self._accepted()

    def stage(self, shards: Sequence[int]) -> str:
        """Score some shards into staging, under a new attempt id that counts for nothing yet."""
        attempt_id = new_attempt_id()
        self.wave_started_s = time.monotonic()
        task = replace(self.pinned.task, trace_folder=self.trace_folder)
        scored = score(self.day, self.pinned, task, shards=shards)
        stage(scored, self.day.config.table(Role.STAGING), work_id=self.run.work_id, attempt_id=attempt_id)
        return attempt_id

    def accept(self, shards: Sequence[int], attempt_id: str) -> None:
        """Record the attempt in the ledger: the first accepted one of a shard is the one that counts."""
        counts = attempt_counts(self.day.staging(), work_id=self.run.work_id, attempt_id=attempt_id)
        elapsed_s = (time.monotonic() - self.wave_started_s) / len(shards)
        rows = [
            self.run.row(
                "shard_accepted",
                shard=shard,
                attempt_id=attempt_id,
                counts=counts[shard].to_ledger() if shard in counts else {},
                elapsed_s=elapsed_s,
                details={"work_id": self.run.work_id, "work": counts[shard].work.to_json() if shard in counts else {}},
            )
            for shard in shards
        ]
        append_ledger(self.day.spark, self.day.ledger_ref, rows)
        self.progress.wave_done(len(shards), counts)

    def pass_gate(self) -> dict[str, Any]:
        """Check the staged shards and return the manifest of the publication.

        Raises:
            GateRefused: a number is out of bounds, and nobody overruled it; nothing was published.
            AnotherRunWon: another run published this `ds` meanwhile.
        """
        self.staged = read_staged(self.day, self.run, lost=self.lost)
        assert self.staged.rows is not None
        staged, scores = count_staged(self.staged.rows, tasks=self.pinned.task.settings.tasks)
        candidates = count_candidates(self.pinned.inputs[Role.CANDIDATES].df)
        checkpoint_id = self.run.pins.checkpoint["id"]
        basis, reference = gate_basis(self.day, checkpoint_id=checkpoint_id)
        checks = overrule(
            check_gate(staged, candidates, scores=scores, reference=reference, bounds=self.day.config.gate),
            self.accepted_checks,
        )
        failed = refused(checks)
        self.answer = {
            "work_id": self.run.work_id,
            "checkpoint_id": checkpoint_id,
            "basis": basis,
            "checks": [check.to_json() for check in checks],
            "staged": staged.to_json(),
            "scores": scores.to_json(),
            "attempts": by_attempt(self.staged.accepted),
        }
        if failed:
            # Whoever published this work first has cleared its rows from staging: then nothing is wrong with them.
            refuse_other(self.day.standing(), self.run)
        self._record("gate_refused" if failed else "gate_passed", self.answer)
        for check in checks:
            if check.accepted:
                log.warning("overruled by --accept %s: %s", check.key, check)
        if failed:
            raise GateRefused("; ".join(check.explained for check in failed))
        log.info(
            "gate passed: %s users, %s candidates in, %s scored, %s quarantined",
            *(
                f"{n:,}"
                for n in (staged.users, staged.candidates_in, staged.candidates_scored, staged.candidates_rejected)
            ),
        )
        return manifest_of(self.run, self.pinned, config=self.day.config, work=self.staged.work, gate=self.answer)

    def publish(self, manifest: Mapping[str, Any]) -> None:
        """Replace the `ds` of the target in one fenced commit.

        Raises:
            AnotherRunWon: another run's publication stands.
        """
        assert self.staged.rows is not None
        try:
            generation = publish(
                self.staged.rows,
                self.day.scores_ref,
                self.run,
                manifest=manifest,
                read=self.day.standing,
                output_files=self.day.config.scoring.output_files,
            )
        except AnotherRunWon as err:
            standing = self.day.standing()
            if standing is not None and standing.generation > self.run.generation:
                raise
            # The fence knows a publication that neither the table nor the ledger does: somebody took it away.
            taken = self.run.row("generation_taken", generation=self.run.generation + 1)
            append_ledger(self.day.spark, self.day.ledger_ref, [taken])
            raise GesrError(
                f"ds {self.run.ds} of {self.run.target} held a publication once that was taken away; nothing was "
                "published, start the job again"
            ) from err
        log.info("ds %s of %s published as generation %d", self.run.ds, self.run.target, generation)

    def finish(self) -> None:
        """Write what follows the publication."""
        finish(self.day, self.run, self.staged, gate=self.answer, started_s=self.started_s)

    def _record(self, kind: str, answer: Mapping[str, Any]) -> None:
        """Record the gate's answer, unless it is what the ledger holds of this work already: a resume says it again."""
        rows = [row for row in self.day.ledger() if row.kind in ("gate_passed", "gate_refused")]
        newest = next((row for row in reversed(rows) if _of_work(row, self.run)), None)
        said = json.loads(json.dumps(answer))
        if newest is not None and (newest.kind, newest.details) == (kind, said):
            return
        append_ledger(self.day.spark, self.day.ledger_ref, [self.run.row(kind, details=said)])

    def _accepted(self) -> dict[int, LedgerRow]:
        return accepted_shards(self.day.ledger(), self.run.work_id, lost=self.lost)
