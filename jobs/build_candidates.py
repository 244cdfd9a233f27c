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
from typing import Final

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.dates import impression_dates, request_time_us, shift_ds
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.errors import InputError
from gesr_core.io.session import open_session
from gesr_core.io.tables import column_type, one_ds, read_input, read_table, table_exists, table_version
from gesr_core.join.impressions import build_impressions, catalogue_at, sample_users
from gesr_core.join.labels import positives
from gesr_core.join.retrieval import active_users, fit, number_events, retrieve, user_item_pairs
from gesr_core.metrics.retrieval import retrieval_recall, summarise_impressions
from gesr_core.names import Col, Role, label
from gesr_core.sink.provenance import Provenance, commit_metadata, content_digests, settings_hash, stale_partitions
from gesr_core.sink.tables import create_table, replace_where

log = logging.getLogger("build_candidates")

_DESCRIPTION = """\
A stand-in retrieval for people who have none. Every user with an event in the candidates.active_days before the request
time gets at most candidates.max_candidates items: the user's own past items, then popular items and those of an ALS
model in turn, each with its source and that source's score. Only events before the request time are used. It prints its
recall of what the users did in the label window, once that is in `events`. Run again with the same events and settings,
it changes nothing.

  build_candidates.py --ds 2001-02-21                  candidates of one day
  build_candidates.py --ds 2001-02-21 --impressions    and labelled candidates of impressions.dates past days, each day's
                                                       made from what lay before it, to train on; the last label window
                                                       closes at the request time of --ds"""

_EVENT_COLUMNS: Final = (Col.USER_ID, Col.ITEM_ID, Col.EVENT_TS, Col.ACTION, Col.VALUE)
# The settings that decide a partition's rows; which other dates there are does not.
_SECTIONS: Final = {Role.CANDIDATES: ("candidates",), Role.IMPRESSIONS: ("candidates", "impressions", "labels")}
_OTHER_DATES: Final = ("dates", "step_days")



def main(argv: Sequence[str]) -> None:
    """Build what is missing or was made from other events or settings, then report."""
    args = _parse(argv)
    config = job_config(args)
    dates = {Role.CANDIDATES: [args.ds], Role.IMPRESSIONS: _past_dates(args.ds, config) if args.impressions else []}
    with open_session("build_candidates", spark_keys=config.spark) as spark, ExitStack() as caches:
        ref = config.table(Role.EVENTS)
        events = read_input(spark, ref, version=table_version(spark, ref)).select(*_EVENT_COLUMNS)
        newest_us = _check_span(events, dates)
        made_from = {role: _made_from(events, role, dates[role], config) for role in dates}
        todo = {role: _stale(spark, role, made_from[role], config) for role in dates}
        if args.dry_run:
            return
        if any(todo.values()):
            for role, rows in _build(events, todo, config, caches).items():
                _write(rows, role, {ds: made_from[role][ds] for ds in todo[role]}, config)
        _report(spark, events, args, config, newest_us=newest_us)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("build_candidates.py", _DESCRIPTION)
    parser.add_argument("--impressions", action="store_true", help="also make impressions of past dates, for training")
    parser.add_argument("--dry-run", action="store_true", help="check the input, say what would be built, write nothing")
    return parser.parse_args(argv)


def _past_dates(ds: str, config: Config) -> list[str]:
    settings, window_days = config.impressions, config.labels.window_days
    return impression_dates(ds, dates=settings.dates, step_days=settings.step_days, window_days=window_days)


def _check_span(events: DataFrame, dates: Mapping[Role, Sequence[str]]) -> int:
    """Return the newest event's time, in microseconds; refuse dates before the first event or after the last."""
    us = F.unix_micros(Col.EVENT_TS)
    first_us, newest_us = events.agg(F.min(us), F.max(us)).first() or (None, None)
    for ds in sorted(ds for of_role in dates.values() for ds in of_role):
        if first_us is None or first_us >= request_time_us(ds):
            hint = "; lower impressions.dates" if ds in dates[Role.IMPRESSIONS] else ""
            raise InputError(f"events has no event before {ds}{hint}")
    for ds in dates[Role.IMPRESSIONS][-1:]:
        if newest_us < request_time_us(ds):
            raise InputError(f"events has no event from {ds} on to make labels from; is it loaded up to --ds?")
    return int(newest_us)


def _made_from(events: DataFrame, role: Role, dates: Sequence[str], config: Config) -> dict[str, Provenance]:
    sections = config.model_dump(mode="json", include=set(_SECTIONS[role]))
    for name in _OTHER_DATES:
        sections.get("impressions", {}).pop(name, None)
    # Labels also come from the events of the label window.
    window_days = config.labels.window_days if role is Role.IMPRESSIONS else 0
    ends_us = [request_time_us(shift_ds(ds, days=window_days)) for ds in dates]
    digests = content_digests(events, columns=_EVENT_COLUMNS, instant=Col.EVENT_TS, before_us=ends_us)
    return {ds: Provenance("build_candidates", settings_hash(sections), d) for ds, d in zip(dates, digests, strict=True)}


def _stale(spark: SparkSession, role: Role, wanted: Mapping[str, Provenance], config: Config) -> list[str]:
    ref = config.table(role)
    stale = stale_partitions(spark, ref, wanted) if table_exists(spark, ref) else list(wanted)
    for ds in wanted:
        log.info("%s of %s: %s", role.value, ds, "to build" if ds in stale else "up to date, nothing to do")
    return stale


def _build(
    events: DataFrame, todo: Mapping[Role, Sequence[str]], config: Config, caches: ExitStack
) -> dict[Role, DataFrame]:
    """Fit every date of `todo` on what lay before it, and return the rows to write of each role."""
    settings, tasks = config.candidates, config.labels.tasks
    dates = sorted(ds for of_role in todo.values() for ds in of_role)
    numbered = number_events(events)
    for df in (numbered.events, numbered.users, numbered.items):
        _cache(df, caches)
    pairs = _cache(user_item_pairs(numbered, dates=dates, settings=settings), caches)
    users = _cache(active_users(pairs, numbered, settings=settings), caches)
    log.info("%d dates to build; fitting ALS for each", len(dates))
    started = time.monotonic()
    fitted = fit(pairs, numbered, dates=dates, settings=settings)
    log.info("fitted in %.1f s", time.monotonic() - started)
    item_type = column_type(events, Col.ITEM_ID)
    of_candidates = users.where(F.col(Col.DS).isin(todo[Role.CANDIDATES]))
    of_impressions = sample_users(users.where(F.col(Col.DS).isin(todo[Role.IMPRESSIONS])), settings=config.impressions)
    rows = {
        role: retrieve(pairs, of_role, fitted, item_type=item_type, settings=settings)
        for role, of_role in ((Role.CANDIDATES, of_candidates), (Role.IMPRESSIONS, of_impressions))
        if todo[role]
    }
    if Role.IMPRESSIONS in rows:
        rows[Role.IMPRESSIONS] = build_impressions(
            rows[Role.IMPRESSIONS],
            positives(events, dates=todo[Role.IMPRESSIONS], window_days=config.labels.window_days, tasks=tasks),
            users=of_impressions,
            catalogue=catalogue_at(numbered.items, todo[Role.IMPRESSIONS]),
            tasks=tasks,
            settings=config.impressions,
        )
    return rows


def _cache(df: DataFrame, caches: ExitStack) -> DataFrame:
    caches.callback(df.persist().unpersist)
    return df


def _write(rows: DataFrame, role: Role, made_from: Mapping[str, Provenance], config: Config) -> None:
    started, ref = time.monotonic(), config.table(role)
    create_table(rows.sparkSession, ref, {f.name: f.dataType.simpleString() for f in rows.schema.fields})
    replace_where(rows, ref, column=Col.DS, value=list(made_from), metadata=commit_metadata(made_from))
    log.info("%s: %d dates written in %.1f s", role.value, len(made_from), time.monotonic() - started)


def _report(
    spark: SparkSession, events: DataFrame, args: argparse.Namespace, config: Config, *, newest_us: int
) -> None:
    labels, window_days = config.labels, config.labels.window_days
    if args.impressions:
        impressions = read_table(spark, config.table(Role.IMPRESSIONS))
        shown = impressions.where(F.col(Col.DS).isin(_past_dates(args.ds, config)))
        for line in summarise_impressions(shown, labels=[label(task.name) for task in labels.tasks]):
            log.info("impressions of %s", line)
    task = max(labels.tasks, key=lambda task: task.score_weight)
    if newest_us < request_time_us(shift_ds(args.ds, days=window_days - 1)):
        log.info("recall of %s: not known before events has the %d days from %s on", task.name, window_days, args.ds)
        return
    candidates = one_ds(read_table(spark, config.table(Role.CANDIDATES)), args.ds)
    wanted = positives(events, dates=[args.ds], window_days=window_days, tasks=[task])
    log.info("recall of %s within %d days: %s", task.name, window_days, retrieval_recall(candidates, wanted))


if __name__ == "__main__":
    run_job(main)
