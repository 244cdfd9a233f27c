"""Labels of the declared tasks from the events of a window. Driver only; DataFrame -> DataFrame, pure."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.config import Task
from gesr_core.join.request_times import DAY_US, with_request_times
from gesr_core.names import Col, label


def positives(
    events: DataFrame,
    *,
    dates: Sequence[str],
    window_days: int,
    tasks: Sequence[Task],
    users: DataFrame | None = None,
) -> DataFrame:
    """Return (ds, user_id, item_id, one 0/1 column per task) of the pairs that have at least one label 1.

    The window of a date runs from its request time (included) for `window_days` days (end excluded). A task's label is
    1 when any event in it has one of the task's actions and, with `value_above: user_median`, a value above the median
    of the user's own earlier events of those actions. A user without such events, or an event without a value, gives 0.

    Args:
        events: as their contract says.
        dates: the dates.
        window_days: length of the window.
        tasks: the declared tasks.
        users: (ds, user_id) of the only users wanted; all when None.
    """
    usable = events.where(F.col(Col.USER_ID).isNotNull() & F.col(Col.ITEM_ID).isNotNull())
    since_us = F.unix_micros(Col.EVENT_TS) - F.col("request_us")
    window = with_request_times(usable, dates, when=(since_us >= 0) & (since_us < window_days * DAY_US))
    if users is not None:
        window = window.join(users, on=[Col.DS, Col.USER_ID], how="left_semi")
    for task in tasks:
        if task.value_above == "user_median":
            window = window.join(_medians(usable, window, task), on=[Col.DS, Col.USER_ID], how="left")
    labels = [F.max(_is_positive(task).cast("int")).alias(label(task.name)) for task in tasks]
    any_label = F.greatest(*(F.col(label(task.name)) for task in tasks), F.lit(0)) == 1
    return window.groupBy(Col.DS, Col.USER_ID, Col.ITEM_ID).agg(*labels).where(any_label)


def _is_positive(task: Task) -> Column:
    positive = _has_action(task)
    if task.value_above == "user_median":
        # An unknown median or value compares as null: no label.
        positive &= F.coalesce(F.col(Col.VALUE) > F.col(_median_name(task)), F.lit(False))
    return positive


def _medians(events: DataFrame, window: DataFrame, task: Task) -> DataFrame:
    """Return (ds, user_id, median value of the earlier events) of the users that have events in the window."""
    needed = window.select(Col.DS, Col.USER_ID, "request_us").distinct()
    valued = events.where(_has_action(task)).select(Col.USER_ID, Col.EVENT_TS, Col.VALUE)
    past = valued.join(needed, on=Col.USER_ID, how="inner").where(F.unix_micros(Col.EVENT_TS) < F.col("request_us"))
    median = F.median(F.col(Col.VALUE).cast("double")).alias(_median_name(task))
    return past.groupBy(Col.DS, Col.USER_ID).agg(median)


def _median_name(task: Task) -> str:
    return f"median_{task.name}"


def _has_action(task: Task) -> Column:
    has_action = F.col(Col.ACTION).isin(task.actions) if task.actions else F.lit(True)
    return F.coalesce(has_action, F.lit(False))
