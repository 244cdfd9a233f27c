"""A run of score_daily, step by step: open or resume, stage, accept, gate, publish, finish. Driver only."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version as package_version
from typing import Any

from pyspark.sql import DataFrame, SparkSession

import gesr_core
from gesr_core.config import Config
from gesr_core.daily.day import Day
from gesr_core.daily.pinning import Pinned, asked_checkpoint, pin_again, pin_newest
from gesr_core.daily.requests import requests_of_shards
from gesr_core.errors import AnotherRunWon, GateRefused, InputError
from gesr_core.executors import OnGrantedGpu, gpu_profile
from gesr_core.io.tables import read_table, table_version
from gesr_core.names import Col, Role
from gesr_core.sink.gate import check_gate, count_candidates, count_staged
from gesr_core.sink.ledger import LedgerRow, append_ledger
from gesr_core.sink.progress import Progress
from gesr_core.sink.publish import publish, quarantine, refuse_other
from gesr_core.sink.run import Lost, Run, accepted_shards, new_run_id, newest_generation, opened, unfinished
from gesr_core.sink.staging import (
    accepted_rows,
    attempt_counts,
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


def already_published(spark: SparkSession, config: Config, args: argparse.Namespace) -> bool:
    """Say whether the `ds` stands published from the same content, and finish what its run may have left undone.

    Raises:
        InputError: it is published from other content, model or configuration, and there is no `--replace`.
    """
    day = Day(spark, config, args.ds, args.target)
    standing = day.standing()
    if standing is None:
        return False
    rows = day.ledger()
    known = any(row.kind == "run_opened" and row.run_id == standing.run_id for row in rows)
    if known and not any(row.kind == "run_published" and row.run_id == standing.run_id for row in rows):
        log.info("run %s published, but did not live to say so: finishing for it", standing.run_id)
        finish(day, opened(rows, standing.run_id), started_s=time.monotonic())
    if args.replace:
        return False
    run = opened(rows, standing.run_id)
    now = pin_newest(spark, config, args, known=run.pins)
    differences = run.pins.differences(now.pins)
    if differences:
        raise InputError(
            f"ds {args.ds} of {args.target} is published already (run {run.run_id}, generation {standing.generation}), "
            f"and this differs since: {'; '.join(differences)}; --replace scores it again and replaces exactly this ds"
        )
    log.info(
        "ds %s of %s is published already (run %s, generation %d) from the same content: nothing to do",
        args.ds,
        args.target,
        run.run_id,
        standing.generation,
    )
    return True


def open_run(spark: SparkSession, config: Config, args: argparse.Namespace) -> DailyRun:
    """Open a run: resume unfinished work from its own pins, or (always with --replace) pin the newest versions.

    Raises:
        InputError: an input is missing.
        AnotherRunWon: another run published the `ds` since `already_published` looked.
    """
    day = Day(spark, config, args.ds, args.target)
    standing, rows = day.standing(), day.ledger()
    if standing is not None and not args.replace:
        raise AnotherRunWon(f"ds {args.ds} of {args.target} was published by run {standing.run_id} just now")
    generation = newest_generation(standing, rows)
    former = None if args.replace else _unfinished(day, args, rows, generation=generation)
    pinned = _pinned_again(day, former) if former else None
    resumed = former.run_id if former and pinned else None
    pinned = pinned or pin_newest(spark, config, args)
    day.create_tables(pinned)
    run = Run(args.ds, args.target, new_run_id(), generation, pinned.pins, resumes=resumed)
    append_ledger(spark, day.ledger_ref, [run.opening()])
    resuming = f", resuming the work of run {resumed}" if resumed else ""
    log.info("run %s opened for ds %s of %s%s", run.run_id, run.ds, run.target, resuming)
    return DailyRun(day, run, pinned, lost=_lost(day, run, rows), trace_folder=args.profile)


def _pinned_again(day: Day, former: Run) -> Pinned | None:
    """Read what an unfinished run pinned; None where that is no longer to be had, and the work must be begun anew."""
    try:
        return pin_again(day.spark, day.config, day.ds, former.pins)
    except InputError as err:
        log.warning("the work of run %s cannot be resumed, and is begun anew: %s", former.run_id, err)
        return None


def _lost(day: Day, run: Run, rows: Sequence[LedgerRow]) -> Lost:
    """Accepted attempts whose rows are not, or not all, in staging any more: somebody cleaned it."""
    accepted = [row for row in rows if row.kind == "shard_accepted" and row.details.get("work_id") == run.work_id]
    if not accepted:
        return frozenset()
    staged = staged_users(day.staging(), work_id=run.work_id)
    gone = [
        (r.shard, r.attempt_id) for r in accepted if r.counts.get("users", 0) != staged.get((r.shard, r.attempt_id), 0)
    ]
    return frozenset(gone)


def finish(day: Day, run: Run, *, started_s: float, lost: Lost = frozenset()) -> None:
    """Write what follows a publication; every step may be repeated without doubling anything."""
    staged = read_staged(day, run, lost=lost)
    quarantine(staged.rows, day.config.table(Role.QUARANTINE), run)
    counts: dict[str, int] = {}
    for row in staged.accepted.values():
        for name, value in row.counts.items():
            counts[name] = counts.get(name, 0) + value
    details = {"work_id": run.work_id, "pins": run.pins.to_json(), "work": staged.work.to_json()}
    elapsed_s = time.monotonic() - started_s
    published = run.row(
        "run_published", generation=run.generation + 1, counts=counts, elapsed_s=elapsed_s, details=details
    )
    append_ledger(day.spark, day.ledger_ref, [published])
    log.info("%s", staged.work)
    clear_staging(day.spark, day.config.table(Role.STAGING), work_id=run.work_id)


def _unfinished(day: Day, args: argparse.Namespace, rows: Sequence[LedgerRow], *, generation: int) -> Run | None:
    checkpoint_id = asked_checkpoint(day.config, args).checkpoint_id if args.checkpoint else None
    configuration = day.config.scoring_hash()
    return unfinished(rows, generation=generation, checkpoint_id=checkpoint_id, configuration=configuration)


@dataclass(frozen=True)
class Staged:
    """The accepted rows in one version of staging: what the gate judges is what is published.

    Another run of the same work may publish and clear staging, or accept shards of its own, at any moment.
    """

    version: int
    accepted: Mapping[int, LedgerRow]
    rows: DataFrame

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
        parts = self.run.pins.parts
        pinned, scoring = self.pinned, self.day.config.scoring
        requests = requests_of_shards(
            pinned.inputs, pinned.checkpoint, scoring, ds=self.run.ds, shards=shards, parts=parts
        )
        requests = one_partition_per_part(requests, {shard: parts.get(shard, 1) for shard in shards})
        task = replace(self.pinned.task, trace_folder=self.trace_folder)
        if scoring.transport == "pandas_udf":
            scored = score_with_udf(requests, task)
        else:
            user = requests.schema[Col.USER_ID].dataType.simpleString()
            fields = f"{Col.SHARD} int, {Col.USER_ID} {user}, {result_fields(requests, tasks=task.settings.tasks)}"
            profile = gpu_profile(self.day.spark, wanted=scoring.device, workers_per_gpu=scoring.workers_per_gpu)
            scored = requests.mapInArrow(OnGrantedGpu(task), fields, profile=profile)
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
            GateRefused: a number is out of bounds; nothing was published.
            AnotherRunWon: another run published this `ds` meanwhile.
        """
        self.staged = read_staged(self.day, self.run, lost=self.lost)
        staged = count_staged(self.staged.rows, tasks=self.pinned.task.settings.tasks)
        candidates = count_candidates(self.pinned.inputs[Role.CANDIDATES].df)
        checks = check_gate(staged, candidates, bounds=self.day.config.gate)
        failed = [check for check in checks if not check.passed]
        details = {
            "checks": [vars(check) for check in checks],
            "staged": vars(staged),
            "staging_version": self.staged.version,
        }
        if failed:
            # Whoever published this work first has cleared its rows from staging: then nothing is wrong with them.
            refuse_other(self.day.standing(), self.run)
        kind = "gate_refused" if failed else "gate_passed"
        append_ledger(self.day.spark, self.day.ledger_ref, [self.run.row(kind, details=details)])
        if failed:
            raise GateRefused("; ".join(f"{check} ({check.remedy})" for check in failed))
        log.info(
            "gate passed: %s users, %s candidates in, %s scored, %s quarantined",
            *(
                f"{n:,}"
                for n in (staged.users, staged.candidates_in, staged.candidates_scored, staged.candidates_rejected)
            ),
        )
        return self._manifest(details)

    def publish(self, manifest: Mapping[str, Any]) -> None:
        """Replace the `ds` of the target in one fenced commit.

        Raises:
            AnotherRunWon: another run's publication stands.
        """
        generation = publish(
            self.staged.rows,
            self.day.scores_ref,
            self.run,
            manifest=manifest,
            read=self.day.standing,
            output_files=self.day.config.scoring.output_files,
        )
        log.info("ds %s of %s published as generation %d", self.run.ds, self.run.target, generation)

    def finish(self) -> None:
        """Write what follows the publication."""
        finish(self.day, self.run, started_s=self.started_s, lost=self.lost)

    def _accepted(self) -> dict[int, LedgerRow]:
        return accepted_shards(self.day.ledger(), self.run.work_id, lost=self.lost)

    def _manifest(self, gate: Mapping[str, Any]) -> dict[str, Any]:
        packages = ("pyspark", "delta-spark", "torch", "pyarrow", "numpy")
        manifest = {
            "form": "gesr.scores",
            "ds": self.run.ds,
            "target": self.run.target,
            "run_id": self.run.run_id,
            "resumes": self.run.resumes,
            "generation": self.run.generation + 1,
            "pins": self.run.pins.to_json(),
            "plan": vars(self.pinned.task.settings),
            "shards": self.day.config.scoring.shards,
            "work": self.staged.work.to_json(),
            "gate": gate,
            "code": gesr_core.__version__,
            "versions": {"python": platform.python_version(), **{name: package_version(name) for name in packages}},
        }
        return dict(json.loads(json.dumps(manifest)))
