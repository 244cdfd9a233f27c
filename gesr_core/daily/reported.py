"""Bring together what the report of a published `ds` shows: ledger, metrics, quarantine and some users. Driver only."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

from pyspark.sql import DataFrame, Row, SparkSession, functions as F

from gesr_core.config import PROJECT_ROOT, Config
from gesr_core.daily.published import Published
from gesr_core.dates import shift_ds
from gesr_core.errors import InputError
from gesr_core.io.daily import newest_days, read_daily
from gesr_core.io.tables import files_are_gone, read_input, read_table, table_exists
from gesr_core.join.labels import positives
from gesr_core.join.requests import users_at
from gesr_core.names import Col, Role
from gesr_core.report.facts import (
    MetricRow,
    Rejected,
    Report,
    Samples,
    checks_of,
    counts_of,
    former_scores,
    run_beside,
    run_facts,
    scores_of,
    shards_of,
    steps_of,
    took_together,
)
from gesr_core.report.samples import choose_users, sample_users, what_was_read
from gesr_core.sink.ledger import published_before, read_ledger, read_run
from gesr_core.sink.run import JOB, Pins, Publication, read_publication

# Former ds whose scores are drawn beside this one's.
_FORMER_DAYS: Final = 7


def read_report(spark: SparkSession, config: Config, *, ds: str, target: str, env: str) -> Report:
    """Read everything that the page shows; `env` is the configuration's name, for the commands on it.

    Raises:
        InputError: the target holds nothing of the `ds`, the ledger does not know the run, or `events` cannot be read.
    """
    scores, standing = _standing(spark, config, ds=ds, target=target)
    ledger = config.table(Role.LEDGER)
    published = Published.of(read_ledger(spark, ledger, job=JOB, ds=ds, target=target), standing)
    run = published.run
    shards = shards_of(published.accepted, parts=run.pins.parts)
    own = scores_of(ds, run.pins.checkpoint["id"], published.gate)
    former = former_scores(published_before(spark, ledger, job=JOB, ds=ds, target=target, days=_FORMER_DAYS))
    metrics = _metrics(spark, config, ds=ds)
    run_ids = sorted({row.run_id for row in metrics} | {run.run_id}, key=lambda run_id: (run_id != run.run_id, run_id))
    return Report(
        ds=ds,
        target=target,
        env=env,
        made_at=dt.datetime.now(dt.timezone.utc),
        run=run_facts(published.opening, published.recorded, accepted=published.accepted, project=str(PROJECT_ROOT)),
        counts=counts_of(published.accepted, published.gate),
        steps=steps_of(published.opening, published.accepted, published.gate_row, published.recorded),
        took=took_together(shards),
        shards=shards,
        checks=checks_of(published.gate),
        # A run whose gate recorded no scores has nothing to compare with former ones.
        scores=(*former, own) if own else (),
        metrics=tuple(metrics),
        beside=tuple(run_beside(run_id, read_run(spark, ledger, run_id)) for run_id in run_ids),
        rejected=_rejected(spark, config, ds=ds, run_id=run.run_id),
        samples=_samples(spark, config, scores, run.pins, ds=ds),
    )


def _standing(spark: SparkSession, config: Config, *, ds: str, target: str) -> tuple[DataFrame, Publication]:
    """The rows of the `ds`, and what they are a publication of."""
    ref = config.table(Role.SCORES, target=target)
    scores = read_table(spark, ref) if table_exists(spark, ref) else None
    standing = None if scores is None else read_publication(scores, ds)
    if scores is None or standing is None:
        days = "none" if scores is None else ", ".join(newest_days(scores, days=3)) or "none"
        target_option = "" if target == Role.SCORES.value else f" --target {target}"
        raise InputError(
            f"{target} ({ref.location}) holds nothing for ds {ds}; its newest: {days}; "
            f"run jobs/score_daily.py --ds {ds}{target_option}"
        )
    return scores.where(F.col(Col.DS) == ds), standing


def _metrics(spark: SparkSession, config: Config, *, ds: str) -> list[MetricRow]:
    ref = config.table(Role.METRICS)
    if not table_exists(spark, ref):
        return []
    rows = read_table(spark, ref).where(F.col(Col.DS) == ds).select(*MetricRow.__dataclass_fields__)
    # A value that could not be measured is no row.
    return [MetricRow(**row.asDict()) for row in rows.where(F.col("value").isNotNull()).collect()]


def _rejected(spark: SparkSession, config: Config, *, ds: str, run_id: str) -> tuple[Rejected, ...]:
    ref = config.table(Role.QUARANTINE)
    if not table_exists(spark, ref):
        return ()
    rows = read_table(spark, ref).where((F.col(Col.DS) == ds) & (F.col(Col.RUN_ID) == run_id))
    counted = rows.groupBy("origin", Col.REASON).agg(
        F.count(F.lit(1)).alias("rows"), F.count_distinct(Col.USER_ID).alias("users")
    )
    return tuple(Rejected(**row.asDict()) for row in counted.orderBy(F.desc("rows"), "origin", Col.REASON).collect())


def _samples(spark: SparkSession, config: Config, scores: DataFrame, pins: Pins, *, ds: str) -> Samples:
    labels = config.labels
    task = labels.scored_task
    events = read_input(spark, config.table(Role.EVENTS))
    newest_us = events.agg(F.max(F.unix_micros(Col.EVENT_TS))).collect()[0][0]
    truth = positives(events, dates=[ds], window_days=labels.window_days, tasks=[task])
    chosen = choose_users(scores, truth)
    read, lost = _what_was_read(spark, config, chosen, pins, ds=ds)
    return Samples(
        task=task.name,
        window=(ds, shift_ds(ds, days=labels.window_days)),
        events_until=None if newest_us is None else dt.datetime.fromtimestamp(newest_us / 1e6, dt.timezone.utc),
        users=sample_users(chosen, read),
        lost=lost,
    )


def _what_was_read(
    spark: SparkSession, config: Config, chosen: list[Row], pins: Pins, *, ds: str
) -> tuple[Mapping[Any, Mapping[str, Any]] | None, str | None]:
    """What the run read of some users, at the versions that it pinned; or nothing, and why."""
    features = [feature.name for feature in config.features.user]
    lists = [feature.name for feature in config.features.user if feature.kind == "multi"]
    pinned = {Role(role): (table.location, table.version) for role, table in pins.inputs.items()}
    try:
        inputs = read_daily(spark, config, ds=ds, user_features=features, user_lists=lists, pinned=pinned)
        anew = [role.value for role, table in inputs.items() if table.table_id != pins.inputs[role.value].table_id]
        if anew:
            return None, f"{', '.join(anew)} is not the table any more that the run read"
        users = users_at(inputs[Role.USERS].df, ds=ds, features=features)
        histories, candidates = inputs[Role.HISTORIES].df, inputs[Role.CANDIDATES].df
        return what_was_read(chosen, histories=histories, candidates=candidates, users=users), None
    except InputError as err:
        return None, str(err)
    except Exception as err:
        if not files_are_gone(err):
            raise
        return None, "files of the versions that the run read were removed since (a vacuum)"
