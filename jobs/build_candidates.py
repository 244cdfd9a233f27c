"""Retrieve candidates of a ds, and impressions of past dates to train on: a stand-in for people who have no retrieval.

events before the request time --> own items, popularity, ALS --> candidates of the ds
events before each past date   --> the same, and labels       --> impressions
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.candidate_set import (
    EVENT_COLUMNS,
    WRITTEN_BY,
    build_candidate_set,
    dates_to_build,
    leave_foreign_candidates,
)
from gesr_core.config import Config, TableRef
from gesr_core.dates import impression_dates, request_time_us, shift_ds
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.io.event_span import newest_event_us
from gesr_core.io.session import open_session
from gesr_core.io.tables import one_ds, read_input, read_table, table_exists, table_version
from gesr_core.join.labels import positives
from gesr_core.metrics.retrieval_report import retrieval_recall, summarise_impressions
from gesr_core.names import Col, Role, label
from gesr_core.sink.provenance import write_partitions
from gesr_core.sink.tables import create_table

log = logging.getLogger("build_candidates")

_DESCRIPTION = """\
A stand-in retrieval for people who have none. Every user with an event in the candidates.active_days before the request
time gets at most candidates.max_candidates items: the user's own past items, then popular items and those of an ALS
model in turn, each with its source and that source's score. Only events before the request time are used. It prints its
recall of what the users did in the label window, once that is in `events`. Run again with the same events and settings,
it changes nothing; with others, it changes candidates that are there only with --replace. A table that it did not
create itself is left alone: with candidates of your own, --impressions makes impressions only.

  build_candidates.py --ds 2001-02-21                  candidates of one day
  build_candidates.py --ds 2001-02-21 --impressions    and labelled candidates of impressions.dates past days, to
                                                       train on, each made from what lay before its day; the
                                                       last label window closes at the request time of --ds"""


def main(argv: Sequence[str]) -> None:
    """Build what is missing or was made from other events or settings, then report."""
    args = _parse(argv)
    config = job_config(args)
    asked = {Role.CANDIDATES: [args.ds], Role.IMPRESSIONS: _past_dates(args.ds, config) if args.impressions else []}
    with open_session("build_candidates", spark_keys=config.spark) as spark, ExitStack() as caches:
        wanted = leave_foreign_candidates(spark, config, asked)
        # Before the events are pinned: who read older ones than a rival did finds its commit.
        from_versions = {role: _version(spark, config.table(role)) for role in wanted}
        ref = config.table(Role.EVENTS)
        events = read_input(spark, ref, version=table_version(spark, ref)).select(*EVENT_COLUMNS)
        newest_us = newest_event_us(events, dates=[args.ds], label_dates=wanted[Role.IMPRESSIONS])
        todo = {
            role: dates_to_build(
                spark, events, role, dates, config, from_version=from_versions[role], replace=args.replace
            )
            for role, dates in wanted.items()
        }
        if args.dry_run:
            return
        for role, rows in build_candidate_set(events, todo, config, caches=caches):
            started, ref = time.monotonic(), config.table(role)
            columns = {field.name: field.dataType.simpleString() for field in rows.schema.fields}
            create_table(spark, ref, columns, properties={WRITTEN_BY: "build_candidates"})
            write_partitions(
                spark, rows, ref, column=Col.DS, made_from=todo[role].made_from,
                from_version=max(0, todo[role].from_version),
            )  # fmt: skip
            log.info("%s: %d dates written in %.1f s", role.value, len(todo[role]), time.monotonic() - started)
        _report(spark, events, wanted, config, newest_us=newest_us)


def _version(spark: SparkSession, ref: TableRef) -> int:
    return table_version(spark, ref) if table_exists(spark, ref) else -1


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("build_candidates.py", _DESCRIPTION)
    parser.add_argument("--impressions", action="store_true", help="also make impressions of past dates, for training")
    parser.add_argument(
        "--replace", action="store_true", help="build candidates again that were built from other events or settings"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the input, say what would be built, write nothing"
    )
    return parser.parse_args(argv)


def _past_dates(ds: str, config: Config) -> list[str]:
    settings, window_days = config.impressions, config.labels.window_days
    return impression_dates(ds, dates=settings.dates, step_days=settings.step_days, window_days=window_days)


def _report(
    spark: SparkSession, events: DataFrame, wanted: Mapping[Role, Sequence[str]], config: Config, *, newest_us: int
) -> None:
    labels = config.labels
    if wanted[Role.IMPRESSIONS]:
        impressions = read_table(spark, config.table(Role.IMPRESSIONS))
        shown = impressions.where(F.col(Col.DS).isin(wanted[Role.IMPRESSIONS]))
        for line in summarise_impressions(shown, labels=[label(task.name) for task in labels.tasks]):
            log.info("impressions of %s", line)
    if not wanted[Role.CANDIDATES]:
        return
    ds, task = wanted[Role.CANDIDATES][0], labels.scored_task
    if newest_us < request_time_us(shift_ds(ds, days=labels.window_days - 1)):
        log.info("recall of %s: not known before events has the %d days from %s", task.name, labels.window_days, ds)
        return
    candidates = one_ds(read_table(spark, config.table(Role.CANDIDATES)), ds)
    pairs = positives(events, dates=[ds], window_days=labels.window_days, tasks=[task])
    log.info("recall of %s within %d days: %s", task.name, labels.window_days, retrieval_recall(candidates, pairs))


run = partial(run_job, main)

if __name__ == "__main__":
    run()
