"""A run of score_daily, step by step: open or resume, stage, accept, gate, publish, finish. Driver only."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from typing import Any

from pyspark.sql import DataFrame, SparkSession, functions as F

import gesr_core
from gesr_core.config import Config
from gesr_core.daily.day import Day
from gesr_core.daily.pinning import Pinned, asked_checkpoint, pin_again, pin_newest, user_features
from gesr_core.errors import GateRefused, InputError
from gesr_core.io.tables import read_table, table_version
from gesr_core.join.requests import build_requests, users_at
from gesr_core.join.shards import shard_of
from gesr_core.names import Col, Role
from gesr_core.sink.gate import check_gate, count_candidates, count_staged
from gesr_core.sink.ledger import LedgerRow, append_ledger
from gesr_core.sink.progress import Progress
from gesr_core.sink.publish import publish, quarantine
from gesr_core.sink.run import Run, accepted_shards, new_run_id, opened, unfinished
from gesr_core.sink.staging import (
    accepted_rows,
    attempt_counts,
    clear_staging,
    new_attempt_id,
    one_partition_per_shard,
    stage,
    waves,
)
from gesr_core.udf import result_fields, score_with_udf

log = logging.getLogger(__name__)


def already_published(spark: SparkSession, config: Config, args: argparse.Namespace) -> bool:
    """Say whether the `ds` stands published from the same content, and finish what its run may have left undone.

    Raises:
        InputError: it is published from other content, model or configuration, and there is no `--replace`.
    """
    day = Day(spark, config, args.ds, args.target)
    standing = day.standing()
    if standing is None or args.replace:
        return False
    rows = day.ledger()
    run = opened(rows, standing.run_id)
    now = pin_newest(spark, config, args, known=run.pins)
    differences = run.pins.differences(now.pins)
    if differences:
        raise InputError(
            f"ds {args.ds} of {args.target} is published already (run {run.run_id}, generation {standing.generation}), "
            f"and this differs since: {'; '.join(differences)}; --replace scores it again and replaces exactly this ds"
        )
    if not any(row.kind == "run_published" and row.run_id == run.run_id for row in rows):
        log.info("run %s published, but did not live to say so: finishing for it", run.run_id)
        DailyRun(day, run, now).finish()
    log.info(
        "ds %s of %s is published already (run %s, generation %d) from the same content: nothing to do",
        args.ds,
        args.target,
        run.run_id,
        standing.generation,
    )
    return True


def open_run(spark: SparkSession, config: Config, args: argparse.Namespace) -> DailyRun:
    """Open a run: resume unfinished work from its own pins, or pin the newest versions of everything.

    Raises:
        InputError: an input is missing, or a pinned version of unfinished work is gone.
    """
    day = Day(spark, config, args.ds, args.target)
    standing = day.standing()
    generation = standing.generation if standing else 0
    checkpoint_id = asked_checkpoint(config, args).checkpoint_id if args.checkpoint else None
    former = unfinished(
        day.ledger(), generation=generation, checkpoint_id=checkpoint_id, configuration=config.scoring_hash()
    )
    pinned = pin_again(spark, config, args.ds, former.pins) if former else pin_newest(spark, config, args)
    day.create_tables(pinned)
    run = Run(args.ds, args.target, new_run_id(), generation, pinned.pins, resumes=former.run_id if former else None)
    append_ledger(spark, day.ledger_ref, [run.opening()])
    log.info("run %s opened for ds %s of %s%s", run.run_id, run.ds, run.target, _resuming(former))
    return DailyRun(day, run, pinned)


@dataclass(frozen=True)
class Staged:
    """The accepted rows in one version of staging: what the gate judges is what is published.

    Another run of the same work may publish and clear staging, or accept shards of its own, at any moment.
    """

    version: int
    accepted: Mapping[int, LedgerRow]
    rows: DataFrame


@dataclass
class DailyRun:
    """An open run and its steps, in the order in which jobs/score_daily.py takes them."""

    day: Day
    run: Run
    pinned: Pinned
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
        requests = one_partition_per_shard(self._requests(shards), shards)
        task = self.pinned.task
        if self.day.config.scoring.transport == "pandas_udf":
            scored = score_with_udf(requests, task)
        else:
            user = requests.schema[Col.USER_ID].dataType.simpleString()
            fields = f"{Col.SHARD} int, {Col.USER_ID} {user}, {result_fields(requests, tasks=task.settings.tasks)}"
            scored = requests.mapInArrow(task, fields)  # type: ignore[arg-type]
        stage(scored, self.day.config.table(Role.STAGING), work_id=self.run.work_id, attempt_id=attempt_id)
        return attempt_id

    def accept(self, shards: Sequence[int], attempt_id: str) -> None:
        """Record the attempt in the ledger: the first accepted one of a shard is the one that counts."""
        counts = attempt_counts(self.day.staging(), work_id=self.run.work_id, attempt_id=attempt_id)
        elapsed_s = (time.monotonic() - self.wave_started_s) / len(shards)
        details = {"work_id": self.run.work_id}
        rows = [
            self.run.row(
                "shard_accepted",
                shard=shard,
                attempt_id=attempt_id,
                counts=vars(counts[shard]) if shard in counts else {},
                elapsed_s=elapsed_s,
                details=details,
            )
            for shard in shards
        ]
        append_ledger(self.day.spark, self.day.ledger_ref, rows)
        self.progress.wave_done(len(shards), counts)

    def pass_gate(self) -> dict[str, Any]:
        """Check the staged shards and return the manifest of the publication.

        Raises:
            GateRefused: a number is out of bounds; nothing was published.
        """
        self.staged = self._staged()
        staged = count_staged(self.staged.rows, tasks=self.pinned.task.settings.tasks)
        candidates = count_candidates(self.pinned.inputs[Role.CANDIDATES].df)
        checks = check_gate(staged, candidates, bounds=self.day.config.gate)
        failed = [check for check in checks if not check.passed]
        details = {
            "checks": [vars(check) for check in checks],
            "staged": vars(staged),
            "staging_version": self.staged.version,
        }
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
        """Write what follows a publication; every step may be repeated without doubling anything."""
        staged = self._staged()
        quarantine(staged.rows, self.day.config.table(Role.QUARANTINE), self.run)
        counts: dict[str, int] = {}
        for row in staged.accepted.values():
            for name, value in row.counts.items():
                counts[name] = counts.get(name, 0) + value
        details = {"work_id": self.run.work_id, "pins": self.run.pins.to_json()}
        published = self.run.row(
            "run_published",
            generation=self.run.generation + 1,
            counts=counts,
            elapsed_s=time.monotonic() - self.started_s,
            details=details,
        )
        append_ledger(self.day.spark, self.day.ledger_ref, [published])
        clear_staging(self.day.spark, self.day.config.table(Role.STAGING), work_id=self.run.work_id)

    def _requests(self, shards: Sequence[int]) -> DataFrame:
        scoring = self.day.config.scoring
        inputs = self.pinned.inputs
        features = user_features(self.pinned.checkpoint)

        def of_wave(df: DataFrame) -> DataFrame:
            return df.where(shard_of(F.col(Col.USER_ID), shards=scoring.shards).isin(list(shards)))

        return build_requests(
            of_wave(inputs[Role.CANDIDATES].df),
            of_wave(inputs[Role.HISTORIES].df),
            users_at(inputs[Role.USERS].df, ds=self.run.ds, features=features),
            shards=scoring.shards,
            max_candidates_per_request=scoring.max_candidates_per_request,
            user_features=features,
        )

    def _accepted(self) -> dict[int, LedgerRow]:
        return accepted_shards(self.day.ledger(), self.run.work_id)

    def _staged(self) -> Staged:
        # In this order: whatever was accepted is in the version.
        accepted, ref = self._accepted(), self.day.config.table(Role.STAGING)
        version = table_version(self.day.spark, ref)
        staging = read_table(self.day.spark, ref, version=version)
        return Staged(version, accepted, accepted_rows(staging, accepted, work_id=self.run.work_id))

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
            "gate": gate,
            "code": gesr_core.__version__,
            "versions": {"python": platform.python_version(), **{name: package_version(name) for name in packages}},
        }
        return dict(json.loads(json.dumps(manifest)))


def _resuming(former: Run | None) -> str:
    return f", resuming the work of run {former.run_id}" if former else ""
