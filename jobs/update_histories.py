"""Bring `histories` forward to a day: the newest events of each user before its request time.

events, their change feed, histories as they stand --> new histories of the users touched --> one Delta commit
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import Config
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.failpoints import reach
from gesr_core.histories_changes import find_changes
from gesr_core.histories_state import Action, HistoriesState, Plan, plan_update
from gesr_core.io.changes import feed_gap
from gesr_core.io.histories import UpdateInputs, open_update
from gesr_core.io.session import open_session
from gesr_core.io.tables import read_table
from gesr_core.join import histories as join
from gesr_core.names import Role
from gesr_core.sink.histories import merge_histories, rebuild_histories, replace_histories_at
from gesr_core.sink.ledger import LedgerRow, append_ledger

log = logging.getLogger("update_histories")

_DESCRIPTION = """\
Bring histories forward to a day: the newest histories.max_events events of each user before its request time. Only
users with new, late or corrected events are written. Where events has a change data feed, what came late or was
corrected is found however old it is; else histories.late_window_days are read again. A day older than the one that
histories stand at is rebuilt beside it, in histories_at. Run again, it does nothing.

  update_histories.py --ds 2001-02-21 --env local
  update_histories.py --ds 2001-02-21 --dry-run      say what would be done, and why
"""


def main(argv: Sequence[str]) -> None:
    """Plan the update, carry it out, record it."""
    parser = job_parser("update_histories.py", _DESCRIPTION)
    parser.add_argument("--rebuild", action="store_true", help="make all histories anew from events")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    args = parser.parse_args(argv)
    config = job_config(args)
    with open_session("update_histories", spark_keys=config.spark) as spark:
        inputs = open_update(spark, config, ds=args.ds)
        plan = plan_update(inputs.current, inputs.wanted, beside=inputs.beside, rebuild=args.rebuild)
        log.info("%s: %s", plan.action.value, plan.reason)
        if args.dry_run:
            return
        if plan.action is Action.NOTHING:
            # Whoever brought them there may not have lived to say so.
            older = inputs.current is not None and inputs.wanted.as_of < inputs.current.as_of
            _record(spark, config, inputs.beside if older else inputs.current, plan)
            return
        started = time.monotonic()
        act = {Action.UPDATE: _update, Action.REBUILD: _rebuild, Action.BESIDE: _beside}[plan.action]
        counts = act(spark, config, inputs)
        elapsed_s = time.monotonic() - started
        log.info("histories of %s are ready after %.1f s: %s", args.ds, elapsed_s, dict(counts))
        reach("histories_ready")
        _record(spark, config, inputs.wanted, plan, counts=counts, elapsed_s=elapsed_s)


def _record(spark: SparkSession, config: Config, state: HistoriesState | None, plan: Plan, **values: Any) -> None:
    if state is None or not state.run_id:
        return
    row = LedgerRow(
        kind="as_of", job="update_histories", ds=state.as_of, target=Role.HISTORIES.value, run_id=state.run_id,
        details={**asdict(state), **asdict(plan)}, **values,
    )  # fmt: skip
    append_ledger(spark, config.table(Role.LEDGER), [row], once=f"as_of/{state.run_id}")


def _update(spark: SparkSession, config: Config, inputs: UpdateInputs) -> Mapping[str, int]:
    ref, wanted = config.table(Role.HISTORIES), inputs.wanted
    histories = read_table(spark, ref, version=inputs.from_version)
    with ExitStack() as cached:
        try:
            fresh, corrected = find_changes(spark, config, inputs, histories, cached=cached)
        except Exception as err:
            if (gap := feed_gap(err)) is None:
                raise
            log.warning("rebuilding: the change data feed of events cannot answer, %s", gap)
            return _rebuild(spark, config, inputs)
        updated = join.updated_histories(
            histories, inputs.events, fresh=fresh, corrected=corrected,
            ds=wanted.as_of, max_events=wanted.max_events, shards=wanted.shards,
        )  # fmt: skip
        return merge_histories(spark, ref, updated, state=wanted, from_version=inputs.from_version)


def _rebuild(spark: SparkSession, config: Config, inputs: UpdateInputs) -> Mapping[str, int]:
    ref = config.table(Role.HISTORIES)
    return rebuild_histories(spark, ref, _build(inputs), state=inputs.wanted, from_version=inputs.from_version)


def _beside(spark: SparkSession, config: Config, inputs: UpdateInputs) -> Mapping[str, int]:
    ref, since = config.table(Role.HISTORIES_AT), inputs.beside_version
    return replace_histories_at(spark, ref, _build(inputs), state=inputs.wanted, from_version=since)


def _build(inputs: UpdateInputs) -> DataFrame:
    wanted = inputs.wanted
    return join.build_histories(inputs.events, ds=wanted.as_of, max_events=wanted.max_events, shards=wanted.shards)


run = partial(run_job, main)

if __name__ == "__main__":
    run()
