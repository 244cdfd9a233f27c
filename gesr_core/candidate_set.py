"""The stand-in retrieval of several dates: which partitions are stale, and the rows that replace them. Driver only.

events --> stale dates of candidates and impressions --> one fit for all of them --> their rows
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.dates import request_time_us, shift_ds
from gesr_core.errors import InputError
from gesr_core.io.tables import one_ds, read_table, require_columns, table_detail, table_exists
from gesr_core.join.impressions import build_impressions, sample_users
from gesr_core.join.labels import positives
from gesr_core.join.retrieval import Retrieval, fit_retrieval, retrieve
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.provenance import Provenance, content_digests, settings_hash, standing_partitions

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


@dataclass(frozen=True)
class Todo:
    """The partitions of a table to write, what each is made from, and the version that the table had then."""

    made_from: Mapping[str, Provenance]
    from_version: int

    def __iter__(self) -> Iterator[str]:
        return iter(self.made_from)

    def __len__(self) -> int:
        return len(self.made_from)


def dates_to_build(
    spark: SparkSession,
    events: DataFrame,
    role: Role,
    dates: Sequence[str],
    config: Config,
    *,
    from_version: int,
    replace: bool,
) -> Todo:
    """Return the dates whose partition is missing or was made from something else.

    Args:
        spark: the session.
        events: the pinned events.
        role: candidates or impressions.
        dates: the days that are asked for.
        config: the resolved configuration.
        from_version: the table's version (-1: no table) from before `events` were pinned.
        replace: write candidates again that were made from something else.

    Raises:
        InputError: candidates of a date are there that were made from something else, and it is not to `replace` them:
            somebody may have scored them.
    """
    # Labels also come from the events of the label window.
    ends = [shift_ds(ds, days=config.labels.window_days) for ds in dates] if role is Role.IMPRESSIONS else dates
    digests = content_digests(
        events, columns=EVENT_COLUMNS, instant=Col.EVENT_TS, before_us=[request_time_us(ds) for ds in ends]
    )
    settings, run_id = settings_hash(config.model_dump(mode="json", include=_SECTIONS[role])), uuid.uuid4().hex[:12]
    made_from = {
        ds: Provenance("build_candidates", settings, digest, run_id) for ds, digest in zip(dates, digests, strict=True)
    }
    ref = config.table(role)
    exists = table_exists(spark, ref)
    standing = standing_partitions(spark, ref) if exists else {}
    stale = [ds for ds, made in made_from.items() if standing.get(ds) != made]
    for ds in dates:
        log.info("%s of %s: %s", role.value, ds, "to build" if ds in stale else "up to date, nothing to do")
    if exists and role is Role.CANDIDATES and not replace:
        for ds in stale:
            _leave_what_is_there(one_ds(read_table(spark, ref), ds), made_from[ds], standing.get(ds), ds=ds)
    return Todo({ds: made_from[ds] for ds in stale}, from_version)


def _leave_what_is_there(rows: DataFrame, made: Provenance, standing: Provenance | None, *, ds: str) -> None:
    """Refuse to change candidates that somebody may have scored.

    Raises:
        InputError: there are candidates of the `ds`.
    """
    if standing is None and rows.isEmpty():
        return
    built = f"by run {standing.run_id} from other {' and '.join(made.differences(standing))}" if standing else "earlier"
    raise InputError(
        f"candidates of {ds} were built {built}; --replace builds them again, and then score_daily --replace has to "
        "score them again"
    )


def build_candidate_set(
    events: DataFrame, todo: Mapping[Role, Todo], config: Config, *, caches: ExitStack
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
