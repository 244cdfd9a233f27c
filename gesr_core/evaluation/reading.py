"""Read a publication and everything that it is measured against. Driver only."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.dates import request_time_us, shift_ds
from gesr_core.errors import InputError
from gesr_core.io.tables import one_ds, read_input, read_table, require_columns, require_unique, table_version
from gesr_core.join.items import as_of, before
from gesr_core.join.labels import positives
from gesr_core.join.requests import users_at
from gesr_core.metrics.comparison import Comparison
from gesr_core.names import Col, Role


def read_comparison(spark: SparkSession, config: Config, *, ds: str, target: str) -> Comparison:
    """Read the publication of a `ds`, its candidates, what was bought in its label window, and what segments need.

    Raises:
        InputError: the `ds` is not published, its label window is not complete in `events`, or a table or column is
            missing.
    """
    task = config.labels.scored_task
    scores = read_scores(spark, config, target=target).where(F.col(Col.DS) == ds)
    standing = scores.select(Col.RUN_ID, Col.MODEL_VERSION).first()
    if standing is None:
        raise InputError(f"{target} holds nothing for ds {ds}: run jobs/score_daily.py --ds {ds}")
    events, candidates, items = (_newest(spark, config, role) for role in (Role.EVENTS, Role.CANDIDATES, Role.ITEMS))
    window_days, declared = config.labels.window_days, config.evaluation.segments
    require_complete_window(events, ds, window_days=window_days)
    truth = positives(events, dates=[ds], window_days=window_days, tasks=[task])
    recent = _recent(events, ds, days=config.evaluation.popularity_days).persist()
    try:
        active = recent.select(Col.USER_ID).distinct().count()
    finally:
        recent.unpersist()
    return Comparison(
        run_id=standing[Col.RUN_ID],
        model_version=standing[Col.MODEL_VERSION],
        task=task.name,
        scores=scores,
        candidates=one_ds(candidates, ds),
        truth=truth.select(Col.USER_ID, Col.ITEM_ID),
        popularity=recent.groupBy(Col.ITEM_ID).agg(F.count_distinct(Col.USER_ID).cast("double").alias("value")),
        active_users=active,
        catalogue_items=as_of(items, Col.ITEM_ID, ds=ds).select(Col.ITEM_ID).distinct().count(),
        picked=_picked(spark, config, ds),
        events=_history_lengths(events, ds) if declared.history_length else None,
        attributes=_attributes(spark, config, ds) if declared.user else None,
    )


def read_scores(spark: SparkSession, config: Config, *, target: str) -> DataFrame:
    """Read all that is published in a target, at its newest version."""
    ref = config.table(Role.SCORES, target=target)
    return read_table(spark, ref, version=table_version(spark, ref))


def require_complete_window(events: DataFrame, ds: str, *, window_days: int) -> None:
    """Check that `events` reaches into the last day of the label window.

    Raises:
        InputError: it does not.
    """
    last_day = shift_ds(ds, days=window_days - 1)
    newest_us = events.agg(F.max(F.unix_micros(Col.EVENT_TS))).collect()[0][0]
    if newest_us is None or newest_us < request_time_us(last_day):
        raise InputError(f"the label window of ds {ds} runs to {last_day}, but events has nothing from that day on yet")


def _newest(spark: SparkSession, config: Config, role: Role) -> DataFrame:
    ref = config.table(role)
    return read_input(spark, ref, version=table_version(spark, ref))


def _recent(events: DataFrame, ds: str, *, days: int) -> DataFrame:
    """Return (user_id, item_id) of the events from which popularity is counted."""
    since = F.timestamp_micros(F.lit(request_time_us(shift_ds(ds, days=-days))))
    recent = events.where(before(Col.EVENT_TS, ds) & (F.col(Col.EVENT_TS) >= since))
    return recent.select(Col.USER_ID, Col.ITEM_ID)


def _history_lengths(events: DataFrame, ds: str) -> DataFrame:
    """Return (user_id, events): how many events before the request time `events` has of a user."""
    return events.where(before(Col.EVENT_TS, ds)).groupBy(Col.USER_ID).agg(F.count(F.lit(1)).alias("events"))


def _attributes(spark: SparkSession, config: Config, ds: str) -> DataFrame:
    ref, columns = config.table(Role.USERS), config.evaluation.segments.user
    users = read_input(spark, ref, version=table_version(spark, ref), features=columns)
    key = (Col.USER_ID, Col.VALID_FROM) if Col.VALID_FROM in users.columns else (Col.USER_ID,)
    require_unique(users, key, where=f"users ({ref.location})")
    return users_at(users, ds=ds, features=columns)


def _picked(spark: SparkSession, config: Config, ds: str) -> DataFrame | None:
    """Return (user_id, item_id) of what the late ranker took, each once; None where no table is named.

    Raises:
        InputError: the table lacks a column, or holds nothing of the `ds`.
    """
    ref = config.ranker_picks()
    if ref is None:
        return None
    table = read_table(spark, ref)
    require_columns(table, [Col.DS, Col.USER_ID, Col.ITEM_ID], where=f"{ref.role} ({ref.location})")
    picked = one_ds(table, ds).select(Col.USER_ID, Col.ITEM_ID).dropna().distinct()
    if picked.isEmpty():
        raise InputError(
            f"{ref.role} ({ref.location}) has no row for ds {ds}: load it, or set evaluation.ranker_picks to null"
        )
    return picked
