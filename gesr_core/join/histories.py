"""Histories: the newest N events of each user before a request time, oldest to newest. Driver only; pure.

Events are ordered by (event_ts, item_id, action, value): a total order, as exact duplicates count once. Events without
a user, an item or a time are passed over. Instants are compared as instants: the session's time zone plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.dates import request_time_us
from gesr_core.join.shards import shard_of
from gesr_core.names import Col

CHANGE_TYPE: Final = "_change_type"
COPIES: Final = "copies"
_ORDER: Final = (Col.EVENT_TS, Col.ITEM_ID, Col.ACTION, Col.VALUE)
_EVENT: Final = (Col.USER_ID, *_ORDER)


def events_between(
    events: DataFrame, *, before_us: int, since_us: int | None = None, keep: Sequence[str] = ()
) -> DataFrame:
    """Return the usable events with `since_us` <= event_ts < `before_us`, in microseconds since 1970 UTC.

    Columns: user_id, event_ts, item_id, action, value (DOUBLE) and those of `keep`.
    """
    usable = F.col(Col.USER_ID).isNotNull() & F.col(Col.ITEM_ID).isNotNull()
    # The bounds are constants of the column's own type, so that Delta skips files by their statistics.
    usable &= F.col(Col.EVENT_TS) < F.timestamp_micros(F.lit(before_us))
    if since_us is not None:
        usable &= F.col(Col.EVENT_TS) >= F.timestamp_micros(F.lit(since_us))
    value = F.col(Col.VALUE).cast("double").alias(Col.VALUE)
    return events.where(usable).select(Col.USER_ID, Col.EVENT_TS, Col.ITEM_ID, Col.ACTION, value, *keep)


def build_histories(events: DataFrame, *, ds: str, max_events: int, shards: int) -> DataFrame:
    """Return (user_id, shard, history) of every user with an event before the request time of `ds`."""
    past = events_between(events, before_us=request_time_us(ds))
    return _with_shard(_newest(past, max_events=max_events), shards=shards)


def net_changes(changes: DataFrame, *, before_us: int) -> DataFrame:
    """Return the events before `before_us` that have `copies` more (or, below 0, fewer) rows than they had.

    Args:
        changes: rows of the change data feed of `events`; what was deleted and inserted unchanged cancels out.
        before_us: later events are no part of any history yet, whatever happened to them.
    """
    rows = events_between(changes, before_us=before_us, keep=[CHANGE_TYPE])
    leaves = F.col(CHANGE_TYPE).isin("delete", "update_preimage")
    copies = F.sum(F.when(leaves, F.lit(-1)).otherwise(F.lit(1))).alias(COPIES)
    return rows.groupBy(*_EVENT).agg(copies).where(F.col(COPIES) != 0)


def arrived(net: DataFrame) -> DataFrame:
    """Return the events of `net_changes` that came in addition."""
    return net.where(F.col(COPIES) > 0).select(*_EVENT)


def corrected_users(net: DataFrame) -> DataFrame:
    """Return the users (user_id) that lost an event in `net_changes`: their histories cannot be brought forward."""
    return net.where(F.col(COPIES) < 0).select(Col.USER_ID).distinct()


def corrected_in_window(histories: DataFrame, window: DataFrame, *, since_us: int) -> DataFrame:
    """Return the users (user_id) whose history holds an event from `since_us` on that `window` lacks by now.

    Args:
        histories: (user_id, ..., history) as they stand.
        window: all events from `since_us` on, as `events_between` gives them.
        since_us: the window's start; what was corrected before it is not seen.
    """
    kept = _flat(histories).where(F.col(Col.EVENT_TS) >= F.timestamp_micros(F.lit(since_us))).alias("kept")
    same = [F.col(f"kept.{name}").eqNullSafe(F.col(f"now.{name}")) for name in _EVENT]
    return kept.join(window.alias("now"), on=same, how="left_anti").select(Col.USER_ID).distinct()


def updated_histories(
    histories: DataFrame,
    events: DataFrame,
    *,
    fresh: DataFrame,
    corrected: DataFrame | None,
    ds: str,
    max_events: int,
    shards: int,
) -> DataFrame:
    """Return (user_id, shard, history) at the request time of `ds` for the users that `fresh` and `corrected` name.

    The newest N of (old history and fresh events) are the newest N of all events: an event that the old history had
    dropped has N newer ones in it. A user who lost an event is rebuilt from `events`; nothing left: a null history.

    Args:
        histories: (user_id, shard, history) as they stand, made with the same `max_events`.
        events: all events, read only for `corrected`.
        fresh: events to add, all before the request time; one that is in the history already counts once.
        corrected: users (user_id) to rebuild, or None when there are none.
        ds: the day to bring them to.
        max_events: length of a history.
        shards: number of shards.
    """
    if corrected is not None:
        fresh = fresh.join(corrected, on=Col.USER_ID, how="left_anti")
    touched = histories.join(fresh.select(Col.USER_ID).distinct(), on=Col.USER_ID, how="left_semi")
    updated = _newest(_flat(touched).unionByName(fresh), max_events=max_events)
    if corrected is not None:
        past = events_between(events, before_us=request_time_us(ds))
        rebuilt = _newest(past.join(corrected, on=Col.USER_ID, how="left_semi"), max_events=max_events)
        updated = updated.unionByName(corrected.join(rebuilt, on=Col.USER_ID, how="left"))
    return _with_shard(updated, shards=shards)


def histories_at(events: DataFrame, requests: DataFrame, *, dates: Sequence[str], max_events: int) -> DataFrame:
    """Return (ds, user_id, history) of every request: its user's history at the request time of its own `ds`.

    One pass over `events` for all the dates: of the events between two request times only the newest N can matter to
    any later one, so a user holds at most N x dates of them. No past event gives an empty history.

    Args:
        events: all events.
        requests: (ds, user_id), unique; `ds` is one of `dates`, other requests get an empty history.
        dates: the days.
        max_events: length of a history.
    """
    at_us = {ds: request_time_us(ds) for ds in sorted(dates)}
    users = requests.select(Col.USER_ID).distinct()
    past = events_between(events, before_us=max(at_us.values())).join(users, on=Col.USER_ID, how="left_semi")
    instants = [F.timestamp_micros(F.lit(us)) for us in at_us.values()]
    period = sum(((F.col(Col.EVENT_TS) >= instant).cast("int") for instant in instants), F.lit(0))
    newest = _newest_rows(past.withColumn("period", period), by=[Col.USER_ID, "period"], max_events=max_events)
    per_user = newest.groupBy(Col.USER_ID).agg(_collected().alias("past"))
    return requests.join(per_user, on=Col.USER_ID, how="left").select(
        Col.DS, Col.USER_ID, _newest_before(F.col("past"), _instant_of(at_us), max_events=max_events).alias(Col.HISTORY)
    )


def _newest(events: DataFrame, *, max_events: int) -> DataFrame:
    """Return (user_id, history) from flat events."""
    newest = _newest_rows(events, by=[Col.USER_ID], max_events=max_events)
    return newest.groupBy(Col.USER_ID).agg(_collected().alias(Col.HISTORY))


def _newest_rows(events: DataFrame, *, by: Sequence[str], max_events: int) -> DataFrame:
    newest_first = (
        Window.partitionBy(*by)
        .orderBy(*(F.col(name).desc_nulls_last() for name in _ORDER))
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    # dense_rank, not row_number: exact duplicates share a place, so they take up one of the N and not two.
    return events.withColumn("place", F.dense_rank().over(newest_first)).where(F.col("place") <= max_events)


def _collected() -> Column:
    """The group's events as a history: each once, oldest to newest."""
    ordered = F.sort_array(F.collect_set(F.struct(*_ORDER)))
    fields = (Col.ITEM_ID, Col.EVENT_TS, Col.ACTION, Col.VALUE)
    return F.transform(ordered, lambda event: F.struct(*(event[name].alias(name) for name in fields)))


def _newest_before(past: Column, instant: Column, *, max_events: int) -> Column:
    before = F.coalesce(F.filter(past, lambda event: event[Col.EVENT_TS] < instant), F.array())
    return F.slice(before, F.greatest(F.size(before) - F.lit(max_events), F.lit(0)) + 1, max_events)


def _instant_of(at_us: dict[str, int]) -> Column:
    """The request time of the row's `ds`; not a cast from text, which would read it in the session's time zone."""
    pairs = [literal for ds, us in at_us.items() for literal in (F.lit(ds), F.lit(us))]
    return F.timestamp_micros(F.element_at(F.create_map(*pairs), F.col(Col.DS)))


def _flat(histories: DataFrame) -> DataFrame:
    events = histories.select(Col.USER_ID, F.explode(Col.HISTORY).alias("event"))
    return events.select(Col.USER_ID, *(F.col(f"event.{name}").alias(name) for name in _ORDER))


def _with_shard(histories: DataFrame, *, shards: int) -> DataFrame:
    return histories.select(Col.USER_ID, shard_of(Col.USER_ID, shards=shards).alias(Col.SHARD), Col.HISTORY)
