"""The stand-in retrieval of several dates: which partitions are stale, and the rows that replace them. Driver only.

events --> stale dates of candidates and impressions --> one fit for all of them --> their rows
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.dates import request_time_us, shift_ds
from gesr_core.errors import InputError
from gesr_core.io.tables import read_table, require_columns, table_detail, table_exists
from gesr_core.join.impressions import build_impressions, sample_users
from gesr_core.join.labels import positives
from gesr_core.join.retrieval import Retrieval, fit_retrieval, retrieve
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.provenance import Provenance, content_digests, settings_hash, stale_partitions

log = logging.getLogger("build_candidates")

EVENT_COLUMNS: Final = (Col.USER_ID, Col.ITEM_ID, Col.EVENT_TS, Col.ACTION, Col.VALUE)
# A property of the tables that this job created: what lacks it is a real retrieval's, or somebody's impressions.
WRITTEN_BY: Final = "gesr.written_by"
# The settings that decide a partition's rows; which other dates there are does not.
_SECTIONS: Final[dict[Role, dict[str, Any]]] = {
    Role.CANDIDATES: {"candidates": True},
    Role.IMPRESSIONS: {
        "candidates": True,
        "impressions": {"user_rate", "unlabelled_user_rate", "negative_rate", "unexposed_items", "seed"},
        "labels": True,
    },
}


def leave_foreign_candidates(
    spark: SparkSession, config: Config, wanted: Mapping[Role, Sequence[str]]
) -> dict[Role, Sequence[str]]:
    """Return what is wanted, less the candidates where that table is another retrieval's and impressions are wanted.

    Raises:
        InputError: a table that would be written was not created by this job, or with other columns.
    """
    kept = dict(wanted)
    for role, dates in wanted.items():
        ref = config.table(role)
        if not dates or not table_exists(spark, ref):
            continue
        if table_detail(spark, ref).properties.get(WRITTEN_BY) == "build_candidates":
            _require_our_columns(spark, config, role)
            continue
        if role is Role.CANDIDATES and wanted[Role.IMPRESSIONS]:
            log.info("candidates at %s are another retrieval's: left as they are", ref.location)
            kept[role] = []
            continue
        raise InputError(
            f"{role.value}: the table at {ref.location} was not written by build_candidates: it is left alone"
        )
    return kept


def _require_our_columns(spark: SparkSession, config: Config, role: Role) -> None:
    ref = config.table(role)
    remedy = (
        "an earlier version of this job made it, or one with other tasks: drop the table, and it is built anew for the "
        "dates that are asked for"
    )
    columns = written_columns(role, tasks=[task.name for task in config.labels.tasks])
    require_columns(read_table(spark, ref), list(columns), where=f"{role.value} ({ref.location})", remedy=remedy)


def dates_to_build(
    spark: SparkSession, events: DataFrame, role: Role, dates: Sequence[str], config: Config
) -> dict[str, Provenance]:
    """Return the dates whose partition is missing or was made from something else, and what they will be made from."""
    # Labels also come from the events of the label window.
    ends = [shift_ds(ds, days=config.labels.window_days) for ds in dates] if role is Role.IMPRESSIONS else dates
    digests = content_digests(
        events, columns=EVENT_COLUMNS, instant=Col.EVENT_TS, before_us=[request_time_us(ds) for ds in ends]
    )
    settings = settings_hash(config.model_dump(mode="json", include=_SECTIONS[role]))
    made_from = {ds: Provenance("build_candidates", settings, d) for ds, d in zip(dates, digests, strict=True)}
    ref = config.table(role)
    stale = stale_partitions(spark, ref, made_from) if table_exists(spark, ref) else list(made_from)
    for ds in dates:
        log.info("%s of %s: %s", role.value, ds, "to build" if ds in stale else "up to date, nothing to do")
    return {ds: made_from[ds] for ds in stale}


def build_candidate_set(
    events: DataFrame, todo: Mapping[Role, Collection[str]], config: Config, *, caches: ExitStack
) -> Iterator[tuple[Role, DataFrame]]:
    """Fit the retrieval of all dates in one plan, then yield each role's rows; `caches` frees what was persisted."""

    def cache(df: DataFrame) -> DataFrame:
        caches.callback(df.persist().unpersist)
        return df

    dates, started_s = [ds for dates in todo.values() for ds in dates], time.monotonic()
    if not dates:
        return
    retrieval = fit_retrieval(events, dates=dates, settings=config.candidates, cache=cache)
    log.info("%d dates fitted in %.1f s", len(dates), time.monotonic() - started_s)
    if todo[Role.CANDIDATES]:
        users = retrieval.users.where(F.col(Col.DS).isin(list(todo[Role.CANDIDATES])))
        yield Role.CANDIDATES, retrieve(retrieval, users, settings=config.candidates)
    if todo[Role.IMPRESSIONS]:
        yield Role.IMPRESSIONS, _impressions(retrieval, events, list(todo[Role.IMPRESSIONS]), config)


def _impressions(retrieval: Retrieval, events: DataFrame, dates: Sequence[str], config: Config) -> DataFrame:
    labels = config.labels
    labelled = positives(events, dates=dates, window_days=labels.window_days, tasks=labels.tasks)
    users = sample_users(retrieval.users.where(F.col(Col.DS).isin(*dates)), labelled, settings=config.impressions)
    return build_impressions(
        retrieve(retrieval, users, settings=config.candidates),
        events,
        users=users,
        items=retrieval.numbered.items,
        dates=dates,
        labels=labels,
        settings=config.impressions,
    )
