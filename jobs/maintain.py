"""Housekeeping of the tables that the jobs write: compaction, vacuum, old ledger rows, orphaned staging.

histories, histories_at, scores and their ledger, staging, quarantine, metrics --> fewer files, the same rows
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from pyspark.sql import SparkSession, functions as F

from gesr_core.config import Config, TableRef
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.io.session import open_session
from gesr_core.io.tables import read_table, table_detail, table_exists
from gesr_core.names import Col, Role
from gesr_core.sink import maintenance
from gesr_core.sink.ledger import LedgerRow, append_ledger, read_since
from gesr_core.sink.run import JOB, REPLAY_JOB, new_run_id

log = logging.getLogger("maintain")

_DESCRIPTION = """\
Keep the tables that the jobs write in order, as often as you like (nightly or weekly), also while runs go on: give up
staging that nobody will publish any more, prune the ledger beyond retention.ledger_days (what stands published keeps
its rows), put small files together, set what retention.replay_days says and vacuum accordingly. Runs that can no longer
be replayed are named. Tables that you bring (events, items, users, candidates, impressions) are not touched.

  maintain.py --env prod --dry-run      what would be done
  maintain.py --env prod
"""


def main(argv: Sequence[str]) -> None:
    """Tidy up table by table, and record which runs lose their replay."""
    args = _parse(argv)
    config = job_config(args)
    now = dt.datetime.now(dt.timezone.utc)
    replayable = now - dt.timedelta(days=config.retention.replay_days)
    with open_session("maintain", spark_keys=config.spark) as spark:
        if not table_exists(spark, config.table(Role.LEDGER)):
            log.info("there is no ledger at %s: nothing was run yet, nothing to do", config.table(Role.LEDGER).location)
            return
        lost = maintenance.runs_losing_replay(read_table(spark, config.table(Role.LEDGER)), before=replayable)
        log.info("%d runs lose their replay%s", len(lost), f": {', '.join(lost)}" if lost else "")
        _give_up_staging(spark, config, before=replayable, dry_run=args.dry_run)
        if args.dry_run:
            log.info("would prune the ledger, compact and vacuum %s", ", ".join(r.role for r in _tables(spark, config)))
            return
        cut = now - dt.timedelta(days=config.retention.ledger_days)
        pruned = maintenance.prune_ledger(spark, config.table(Role.LEDGER), before=cut)
        log.info("%d ledger rows from before %s pruned", pruned, f"{cut:%Y-%m-%d}")
        row = LedgerRow(
            kind=maintenance.MAINTAINED, job="maintain", ds=f"{now:%Y-%m-%d}", target="", run_id=new_run_id(),
            details={"lost_replay": lost, "ledger_rows_pruned": pruned},
        )  # fmt: skip
        append_ledger(spark, config.table(Role.LEDGER), [row])
        for ref in _tables(spark, config):
            _tidy(spark, ref)


def _give_up_staging(spark: SparkSession, config: Config, *, before: dt.datetime, dry_run: bool) -> None:
    ref = config.table(Role.STAGING)
    if not table_exists(spark, ref):
        return
    staged = [row[Col.WORK_ID] for row in read_table(spark, ref).select(Col.WORK_ID).distinct().collect()]
    rows = read_since(spark, config.table(Role.LEDGER), job=JOB, since=before)
    orphaned = maintenance.orphaned_work(rows, staged, before=before)
    log.info("%d of %d pieces of work in staging are orphaned", len(orphaned), len(staged))
    if orphaned and not dry_run:
        maintenance.clear_work(spark, ref, orphaned)


def _tables(spark: SparkSession, config: Config) -> Iterator[TableRef]:
    """The tables of ours that exist, every target of score_daily among them."""
    refs = {ref.location: ref for ref in (config.table(role) for role in maintenance.OURS)}
    ledger = read_table(spark, config.table(Role.LEDGER)).where(F.col("job").isin(JOB, REPLAY_JOB))
    for row in ledger.select("target").distinct().orderBy("target").collect():
        ref = config.table(Role.SCORES, target=row["target"])
        refs[ref.location] = ref
    yield from (ref for ref in refs.values() if table_exists(spark, ref))


def _tidy(spark: SparkSession, ref: TableRef) -> None:
    if maintenance.keep_retention(spark, ref, table_detail(spark, ref).properties):
        log.info("%s: removed files are kept for %d days from now on", ref.role, ref.keep_days)
    gone, came = maintenance.compact(spark, ref)
    maintenance.vacuum(spark, ref)
    log.info("%s: %d files put into %d, vacuumed", ref.role, gone, came)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("maintain.py", _DESCRIPTION, with_ds=False)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser.parse_args(argv)


run = partial(run_job, main)

if __name__ == "__main__":
    run()
