"""The steps of score_daily, composed from io, join, runtime and sink for jobs/score_daily.py. Driver only."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession, functions as F

import gesr_core
from gesr_core.config import Config, TableRef
from gesr_core.content import sha256_of
from gesr_core.errors import GateRefused, InputError
from gesr_core.io.daily import InputTable, newest_days, read_daily
from gesr_core.io.tables import read_table, require_columns, table_exists
from gesr_core.join.requests import build_requests, users_at
from gesr_core.join.shards import shard_of
from gesr_core.names import Col, Role
from gesr_core.runtime.device import choose_device
from gesr_core.runtime.item_states import resolve_item_states
from gesr_core.runtime.worker import ScoreShards
from gesr_core.schema import written_columns
from gesr_core.sink.gate import check_gate, count_candidates, count_staged
from gesr_core.sink.ledger import LedgerRow, append_ledger, read_ledger
from gesr_core.sink.progress import Progress
from gesr_core.sink.publish import publish, quarantine
from gesr_core.sink.run import (
    JOB,
    Pins,
    Publication,
    Run,
    accepted_shards,
    new_run_id,
    opened,
    pin_table,
    read_publication,
    unfinished,
)
from gesr_core.sink.staging import (
    accepted_rows,
    attempt_counts,
    clear_staging,
    new_attempt_id,
    one_partition_per_shard,
    stage,
    waves,
)
from gesr_core.sink.tables import create_table
from gesr_core.training.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from gesr_core.udf import result_fields, score_with_udf, scoring_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pinned:
    """What a run reads: the rows of each input, the checkpoint, where the item states lie, and the pins that say so."""

    inputs: Mapping[Role, InputTable]
    checkpoint: Checkpoint
    item_states: Path
    pins: Pins
    task: ScoreShards


def already_published(spark: SparkSession, config: Config, args: argparse.Namespace) -> bool:
    """Say whether the `ds` stands published from the same content, and finish what its run may have left undone.

    Raises:
        InputError: it is published from other content, model or configuration, and there is no `--replace`.
    """
    day = _Day(spark, config, args.ds, args.target)
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
    day = _Day(spark, config, args.ds, args.target)
    standing = day.standing()
    generation = standing.generation if standing else 0
    checkpoint_id = _checkpoint(config, args).checkpoint_id if args.checkpoint else None
    former = unfinished(
        day.ledger(), generation=generation, checkpoint_id=checkpoint_id, configuration=config.scoring_hash()
    )
    pinned = _pin_again(spark, config, args.ds, former.pins) if former else pin_newest(spark, config, args)
    day.create_tables(pinned)
    run = Run(args.ds, args.target, new_run_id(), generation, pinned.pins, resumes=former.run_id if former else None)
    append_ledger(spark, day.ledger_ref, [run.opening()])
    log.info("run %s opened for ds %s of %s%s", run.run_id, run.ds, run.target, _resuming(former))
    return DailyRun(day, run, pinned)


def pin_newest(
    spark: SparkSession, config: Config, args: argparse.Namespace, *, known: Pins | None = None, log_plan: bool = False
) -> Pinned:
    """Check everything that scoring a `ds` needs, and pin its newest state.

    Args:
        spark: the session.
        config: the resolved configuration.
        args: the command line.
        known: pins whose digests hold where the version is the same; histories may then have moved on.
        log_plan: say what a run would read (`--dry-run`).

    Raises:
        InputError: a table, column, day, checkpoint or item states are missing.
        ConfigurationError: the device that is configured is not there.
    """
    checkpoint = _checkpoint(config, args)
    states = resolve_item_states(config.folder("item_states"), checkpoint_id=checkpoint.checkpoint_id, ds=args.ds)
    task = scoring_task(config, ds=args.ds, checkpoint=checkpoint, item_states=states)
    device = choose_device(config.scoring.device)
    features = _user_features(checkpoint)
    inputs = read_daily(spark, config, ds=args.ds, user_features=features, without_histories=known is not None)
    tables = {
        role.value: pin_table(
            table.df,
            location=table.location,
            version=table.version,
            known=known.inputs.get(role.value) if known else None,
        )
        for role, table in inputs.items()
    }
    if tables[Role.CANDIDATES.value].digest.startswith("0:"):
        days = ", ".join(newest_days(read_table(spark, config.table(Role.CANDIDATES)), days=3)) or "none"
        raise InputError(
            f"candidates ({inputs[Role.CANDIDATES].location}) has no row for ds {args.ds}; its newest: {days}"
        )
    pins = Pins(
        tables,
        {"path": str(checkpoint.path), "id": checkpoint.checkpoint_id, "model": checkpoint.model_name},
        {"path": str(states), "version": task.items_version, "sha256": sha256_of(states / "manifest.json")},
        config.scoring_hash(),
    )
    if log_plan:
        _log_plan(pins, device=str(device), shards=config.scoring.shards)
    return Pinned(inputs, checkpoint, states, pins, task)


def _pin_again(spark: SparkSession, config: Config, ds: str, pins: Pins) -> Pinned:
    """Read again exactly what an unfinished run pinned."""
    checkpoint = load_checkpoint(Path(pins.checkpoint["path"]))
    if checkpoint.checkpoint_id != pins.checkpoint["id"]:
        raise InputError(
            f"{pins.checkpoint['path']} is no longer the checkpoint {pins.checkpoint['id']} that was pinned"
        )
    states = Path(pins.item_states["path"])
    task = scoring_task(config, ds=ds, checkpoint=checkpoint, item_states=states)
    where = {Role(role): (table.location, table.version) for role, table in pins.inputs.items()}
    inputs = read_daily(spark, config, ds=ds, user_features=_user_features(checkpoint), pinned=where)
    return Pinned(inputs, checkpoint, states, pins, task)


@dataclass
class _Day:
    """The tables of one (ds, target) in one session."""

    spark: SparkSession
    config: Config
    ds: str
    target: str

    @property
    def scores_ref(self) -> TableRef:
        return self.config.table(Role.SCORES, target=self.target)

    @property
    def ledger_ref(self) -> TableRef:
        return self.config.table(Role.LEDGER)

    def standing(self) -> Publication | None:
        """What stands for the `ds` in the newest version of the target."""
        if not table_exists(self.spark, self.scores_ref):
            return None
        return read_publication(read_table(self.spark, self.scores_ref), self.ds)

    def ledger(self) -> list[LedgerRow]:
        return read_ledger(self.spark, self.ledger_ref, job=JOB, ds=self.ds, target=self.target)

    def staging(self) -> DataFrame:
        return read_table(self.spark, self.config.table(Role.STAGING))

    def create_tables(self, pinned: Pinned) -> None:
        """Create what the run writes, with the id types of its candidates."""
        candidates = pinned.inputs[Role.CANDIDATES].df
        item = candidates.schema[Col.CANDIDATES].dataType.elementType[Col.ITEM_ID].dataType.simpleString()  # type: ignore[attr-defined]
        user = candidates.schema[Col.USER_ID].dataType.simpleString()
        tasks = pinned.checkpoint.features.tasks
        feed = {"delta.enableChangeDataFeed": "true"}
        for role, ref in ((Role.STAGING, self.config.table(Role.STAGING)), (Role.SCORES, self.scores_ref)):
            columns = written_columns(role, user=user, item=item, tasks=tasks)
            create_table(self.spark, ref, columns, properties=feed if role is Role.SCORES else {})
        create_table(self.spark, self.config.table(Role.QUARANTINE), written_columns(Role.QUARANTINE))
        self._require_columns(self.scores_ref, written_columns(Role.SCORES, user=user, item=item, tasks=tasks))

    def _require_columns(self, ref: TableRef, columns: Mapping[str, str]) -> None:
        table = read_table(self.spark, ref)
        require_columns(table, list(columns), where=f"{ref.role} ({ref.location})")
        for name, expected in columns.items():
            found = table.schema[name].dataType.simpleString()
            if found != expected:
                raise InputError(
                    f"{ref.role} ({ref.location}): column {name!r} is {found}, but this checkpoint writes {expected}; "
                    "publish to another --target or migrate the table"
                )


@dataclass
class DailyRun:
    """An open run and its steps, in the order in which jobs/score_daily.py takes them."""

    day: _Day
    run: Run
    pinned: Pinned
    started_s: float = field(default_factory=time.monotonic)
    checks: Mapping[str, Any] = field(default_factory=dict)

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
        staged = count_staged(self._accepted_rows(), tasks=self.pinned.task.settings.tasks)
        candidates = count_candidates(self.pinned.inputs[Role.CANDIDATES].df)
        checks = check_gate(staged, candidates, bounds=self.day.config.gate)
        failed = [check for check in checks if not check.passed]
        details = {"checks": [vars(check) for check in checks], "staged": vars(staged)}
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
            self._accepted_rows(),
            self.day.scores_ref,
            self.run,
            manifest=manifest,
            read=self.day.standing,
            output_files=self.day.config.scoring.output_files,
        )
        log.info("ds %s of %s published as generation %d", self.run.ds, self.run.target, generation)

    def finish(self) -> None:
        """Write what follows a publication; every step may be repeated without doubling anything."""
        quarantine(self._accepted_rows(), self.day.config.table(Role.QUARANTINE), self.run)
        accepted = self._accepted().values()
        counts: dict[str, int] = {}
        for row in accepted:
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
        features = _user_features(self.pinned.checkpoint)

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

    def _accepted_rows(self) -> DataFrame:
        return accepted_rows(self.day.staging(), self._accepted(), work_id=self.run.work_id)

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


def _checkpoint(config: Config, args: argparse.Namespace) -> Checkpoint:
    return load_checkpoint(resolve_checkpoint(config.folder("checkpoints"), args.checkpoint or config.training.model))


def _user_features(checkpoint: Checkpoint) -> list[str]:
    space = checkpoint.features
    return [feature.name for feature in (*space.user_categories, *space.user_numerics)]


def _resuming(former: Run | None) -> str:
    return f", resuming the work of run {former.run_id}" if former else ""


def _log_plan(pins: Pins, *, device: str, shards: int) -> None:
    for role, table in pins.inputs.items():
        rows = table.digest.split(":")[0]
        log.info("%s: %s rows, version %d of %s", role, f"{int(rows):,}", table.version, table.location)
    log.info("checkpoint: %s", pins.checkpoint["path"])
    log.info("item states: %s", pins.item_states["path"])
    log.info("device: %s; %d shards; everything that a run needs is there", device, shards)
