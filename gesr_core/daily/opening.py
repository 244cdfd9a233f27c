"""Open a run of score_daily, resume one, or see that there is nothing to do. Driver only."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import SparkSession

from gesr_core.config import Config
from gesr_core.daily.code import made_by
from gesr_core.daily.day import Day
from gesr_core.daily.pinning import Pinned, asked_checkpoint, pin_again, pin_newest
from gesr_core.daily.run import DailyRun, finish_for, gate_basis
from gesr_core.errors import AnotherRunWon, GateRefused, InputError
from gesr_core.failpoints import reach
from gesr_core.sink.gate import checks_from_json, overrule, refused
from gesr_core.sink.ledger import LedgerRow, append_ledger
from gesr_core.sink.run import Lost, Run, Unfinished, new_run_id, newest_generation, opened, unfinished
from gesr_core.sink.staging import staged_users

log = logging.getLogger(__name__)


def already_published(spark: SparkSession, config: Config, args: argparse.Namespace) -> bool:
    """Say whether the `ds` stands published from the same content, and finish what its run may have left undone.

    With `--replace` it does not, unless the run that was asked for just now is what died before it could say so.

    Raises:
        InputError: it is published from other content, model or configuration, and there is no `--replace`.
    """
    day = Day(spark, config, args.ds, args.target)
    standing = day.standing()
    if standing is None:
        return False
    rows = day.ledger()
    unsaid = any(row.kind == "run_opened" and row.run_id == standing.run_id for row in rows) and not any(
        row.kind == "run_published" and row.run_id == standing.run_id for row in rows
    )
    if unsaid:
        log.info("run %s published, but did not live to say so: finishing for it", standing.run_id)
        finish_for(day, opened(rows, standing.run_id), rows, started_s=time.monotonic())
    if args.replace and not unsaid:
        return False
    run = opened(rows, standing.run_id)
    asked = args.checkpoint
    if unsaid and not args.replace and asked.is_registered and asked.reference == run.pins.checkpoint.get("reference"):
        # This start resumes that run, whose pins hold, wherever the name points by now.
        return True
    # What needs no table is compared first: a newer checkpoint may have no item states of this day.
    differences = run.pins.differences_of_model(
        checkpoint_id=asked_checkpoint(config, args).checkpoint_id, configuration=config.scoring_hash()
    ) or run.pins.differences(pin_newest(spark, config, args, known=run.pins).pins)
    if args.replace and (differences or run.pins.made_by != made_by()):
        return False
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
    """Open a run: take over unfinished work with its own pins, or pin the newest versions.

    Work that the gate refused, and with `--replace` all work, is taken over only where the inputs are the same in
    content by now.

    Raises:
        InputError: an input is missing.
        GateRefused: the gate refused this very work by these very bounds before.
        AnotherRunWon: another run published the `ds` since `already_published` looked.
    """
    day = Day(spark, config, args.ds, args.target)
    standing, rows = day.standing(), day.ledger()
    if standing is not None and not args.replace:
        raise AnotherRunWon(f"ds {args.ds} of {args.target} was published by run {standing.run_id} just now")
    generation = newest_generation(standing, rows)
    former = _unfinished(config, args, rows, generation=generation)
    pinned = _taken_over(day, former, rows, args) if former else None
    resumed = former.run.run_id if former and pinned else None
    pinned = pinned or pin_newest(spark, config, args)
    day.create_tables(pinned)
    run = Run(args.ds, args.target, new_run_id(), generation, pinned.pins, resumes=resumed)
    append_ledger(spark, day.ledger_ref, [run.opening(configuration=config.scoring_settings())])
    resuming = f", resuming the work of run {resumed}" if resumed else ""
    log.info("run %s opened for ds %s of %s%s", run.run_id, run.ds, run.target, resuming)
    reach("opened")
    return DailyRun(
        day,
        run,
        pinned,
        lost=_lost(day, run, rows),
        accepted_checks=frozenset(args.accept),
        trace_folder=args.profile,
    )


def _unfinished(
    config: Config, args: argparse.Namespace, rows: Sequence[LedgerRow], *, generation: int
) -> Unfinished | None:
    asked = args.checkpoint
    if asked.is_registered and not args.replace:
        # What was pinned under this name holds, wherever it points by now; the registry need not even answer.
        found = _of_this_code(config, rows, generation=generation, reference=asked.reference)
        if found is not None:
            return found
    by_name = asked.reference is not None or args.replace
    checkpoint_id = asked_checkpoint(config, args).checkpoint_id if by_name else None
    return _of_this_code(config, rows, generation=generation, checkpoint_id=checkpoint_id)


def _of_this_code(
    config: Config, rows: Sequence[LedgerRow], *, generation: int, **checkpoint: str | None
) -> Unfinished | None:
    configuration = config.scoring_hash()

    def of_code(made: Mapping[str, Any] | None) -> Unfinished | None:
        return unfinished(rows, generation=generation, configuration=configuration, made_by=made, **checkpoint)

    found = of_code(made_by())
    if found is None and (other := of_code(None)) is not None:
        log.info("the work of run %s is not taken over: the code or its libraries changed", other.run.run_id)
    return found


def _taken_over(day: Day, former: Unfinished, rows: Sequence[LedgerRow], args: argparse.Namespace) -> Pinned | None:
    """Read what an unfinished run pinned; None where its work must be begun anew.

    Raises:
        GateRefused: nothing changed since the gate refused this work.
    """
    if former.refusal or args.replace:
        now = pin_newest(day.spark, day.config, args, known=former.run.pins)
        changed = former.run.pins.differences(now.pins)
        if changed:
            log.info("the work of run %s is not taken over: %s changed", former.run.run_id, ", ".join(changed))
            return None
    if former.refusal and not _lost(day, former.run, rows):
        _answer_again(day, former.refusal, accepted=args.accept)
    try:
        return pin_again(day.spark, day.config, day.ds, former.run.pins)
    except InputError as err:
        log.warning("the work of run %s cannot be resumed, and is begun anew: %s", former.run.run_id, err)
        return None


def _answer_again(day: Day, refusal: LedgerRow, *, accepted: Sequence[str]) -> None:
    """Refuse what was refused before, if neither the bounds nor what they are compared with have changed.

    What nobody may overrule is the job's own fault: its remedy is another start, so that is judged anew.

    Raises:
        GateRefused: with the numbers of then.
    """
    basis, _ = gate_basis(day, checkpoint_id=refusal.details.get("checkpoint_id", ""))
    standing = refused(overrule(checks_from_json(refusal.details["checks"]), accepted))
    if refusal.details.get("basis") != basis or not standing or any(check.key is None for check in standing):
        return
    log.info("the gate refused this work before (run %s), and nothing has changed since", refusal.run_id)
    raise GateRefused("; ".join(check.explained for check in standing))


def _lost(day: Day, run: Run, rows: Sequence[LedgerRow]) -> Lost:
    """Accepted attempts whose rows are not, or not all, in staging any more: somebody cleaned it."""
    accepted = [row for row in rows if row.kind == "shard_accepted" and row.details.get("work_id") == run.work_id]
    if not accepted:
        return frozenset()
    staged = staged_users(day.staging(), work_id=run.work_id) if day.has_staging() else {}
    gone = [
        (r.shard, r.attempt_id) for r in accepted if r.counts.get("users", 0) != staged.get((r.shard, r.attempt_id), 0)
    ]
    return frozenset(gone)
