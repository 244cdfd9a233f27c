"""Score again exactly what a published run scored, and see that the same table comes out. Driver only."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.daily.code import made_by
from gesr_core.daily.day import Day
from gesr_core.daily.pinning import pin_again
from gesr_core.daily.run import score
from gesr_core.errors import ConfigurationError, GesrError, InputError
from gesr_core.io.tables import read_table
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.commits import past_conflicts
from gesr_core.sink.gate import ranked_hash
from gesr_core.sink.ledger import LedgerRow, append_ledger, read_run, targets
from gesr_core.sink.publish import score_rows
from gesr_core.sink.run import JOB, REPLAY_JOB, Run, opened
from gesr_core.sink.tables import create_table, replace_where
from gesr_core.sink.work import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """What the ledger holds of a published run."""

    run: Run
    work: Work
    gate: Mapping[str, Any]
    configuration: Mapping[str, Any]


def recorded_run(rows: Sequence[LedgerRow], run_id: str) -> Recorded:
    """Return what a replay needs of a run.

    Raises:
        InputError: the ledger does not know the run, it did not publish, or the job's version of then recorded less.
    """
    if not any(row.job == JOB for row in rows):
        raise InputError(f"the ledger knows no run {run_id!r} of {JOB}")
    published = next((row for row in rows if row.kind == "run_published"), None)
    if published is None:
        raise InputError(f"run {run_id} did not publish: there is nothing to compare a replay with")
    opening = next(row for row in rows if row.kind == "run_opened")
    configuration, gate = opening.details.get("configuration"), published.details.get("gate")
    if not configuration or not gate or "ranked_hash" not in gate.get("staged", {}):
        raise InputError(f"run {run_id} was made by an earlier version of this job, which did not record enough")
    return Recorded(opened(rows, run_id), Work.from_json(published.details["work"]), gate, configuration)


def replay(spark: SparkSession, config: Config, run_id: str, *, to: str) -> int:
    """Score a published run again into the table `to`, compare, and return the number of users.

    Args:
        spark: the session.
        config: says where tables and checkpoints are; what decides the scores comes from the ledger.
        run_id: a run that published.
        to: target to write the `ds` to, in place of what stands there; a scores table's name.

    Raises:
        InputError: something that the run pinned is gone, or is another by now.
        GesrError: another table came out.
    """
    recorded = recorded_run(read_run(spark, config.table(Role.LEDGER), run_id), run_id)
    run = recorded.run
    if _is_published_to(spark, config, to, run.target):
        raise ConfigurationError(f"--to {to} is a table that score_daily publishes to: name another one")
    _warn_of_other_versions(run.pins.made_by)
    day = Day(spark, config.with_scoring_settings(recorded.configuration), run.ds, to)
    pinned = pin_again(spark, day.config, run.ds, run.pins)
    task = replace(pinned.task, halved=recorded.work.halved)
    shards = list(range(day.config.scoring.shards))
    log.info("scoring %d shards of ds %s again, as run %s did", len(shards), run.ds, run_id)
    rows = score_rows(score(day, pinned, task, shards=shards), run, generation=run.generation + 1)
    types = {name: rows.schema[name].dataType.simpleString() for name in rows.columns}
    columns = {name: types[name] for name in written_columns(Role.SCORES)}
    create_table(spark, day.scores_ref, columns)
    day.require_columns(day.scores_ref, columns, remedy="replay to another table (--to)")
    metadata = json.dumps({"form": "gesr.replay", "run_id": run_id, "ds": run.ds, **made_by()})
    past_conflicts(
        lambda: replace_where(rows, day.scores_ref, column=Col.DS, value=run.ds, metadata=metadata),
        where=day.scores_ref.location,
    )
    users = _compare(read_table(spark, day.scores_ref).where(F.col(Col.DS) == run.ds), recorded, to=to)
    row = LedgerRow(kind="replayed", job=REPLAY_JOB, ds=run.ds, target=to, run_id=run_id, counts={"users": users})
    append_ledger(spark, day.ledger_ref, [row])
    return users


def _is_published_to(spark: SparkSession, config: Config, to: str, target: str) -> bool:
    """Say whether a target is, under whatever name, a table that any run published to."""
    published = {Role.SCORES.value, target, *targets(spark, config.table(Role.LEDGER))}
    # Catalogs do not tell names apart by their case.
    locations = {config.table(Role.SCORES, target=name).location.lower() for name in published}
    return config.table(Role.SCORES, target=to).location.lower() in locations


def _compare(rows: DataFrame, recorded: Recorded, *, to: str) -> int:
    users, found = rows.agg(F.count(F.lit(1)), ranked_hash()).collect()[0]
    staged = recorded.gate["staged"]
    if (users, str(int(found or 0))) != (staged["users_scored"], staged["ranked_hash"]):
        raise GesrError(
            f"the replay of run {recorded.run.run_id} is another table: {to} has {users} users, the publication had "
            f"{staged['users_scored']}; the same bits are promised on the same hardware and versions alone"
        )
    return int(users)


def _warn_of_other_versions(then: Mapping[str, Any]) -> None:
    now = made_by()
    before = {"the code": then.get("code"), **then.get("versions", {})}
    for name, version in {"the code": now["code"], **now["versions"]}.items():
        if before.get(name) != version:
            log.warning("%s was %s then and is %s now: scores may differ", name, before.get(name), version)
