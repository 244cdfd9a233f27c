"""MovieLens-100K as a prepared data set: requests in the middle of each user's ratings, written without Spark.

A user has a request when 50, 60, 70, 80 and 90 % of the own ratings are in. Everything that is learned uses global
cut-offs in time: a request belongs to the newest block (`ds`) before it, item tables and popularity are as of the
block, and labels come from before the next split. Request times differ within a block, so a row's times are shifted:
what lies s seconds before the request stands s seconds before the block's 00:00 UTC.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.quality.folders import DOWNLOADS, ROOT, code_hash, draft_folder, key_of, write_manifest
from benchmarks.quality.prepared import REQUEST_ID, REQUEST_US, Regime, Step
from gesr_core.dates import request_time_us
from gesr_core.names import Col, label, user_feature
from gesr_core.samples import ml_100k as sample
from gesr_core.samples.download import fetch_wheel

log = logging.getLogger("benchmarks.quality")

NAME: Final = "ml_100k"
REGIME: Final = Regime(
    train=("1997-11-01", "1997-11-15", "1997-12-01", "1997-12-15", "1998-01-01"),
    validation="1998-01-15",
    steps=(Step("1998-01-15", "1998-02-01"),),
)
QUICK_REGIME: Final = replace(REGIME, train=REGIME.train[-2:])
# After the newest rating.
_END: Final = "1998-05-01"
SHARES: Final = (0.5, 0.6, 0.7, 0.8, 0.9)
TASK: Final = "liked"
# A goal counts only where at least so many test users remain.
MIN_USERS: Final = 300
_LIKED: Final = 4.0
_NEGATIVE_RATE: Final = 0.1
_MAX_HISTORY: Final = 64
_DAY_US: Final = 86_400_000_000
_USER_FEATURES: Final = ("age_band", "gender", "occupation")
# The configuration of this data: what `conf/` would say about it.
OVERRIDES: Final = (
    "features.item=[{name: first_genre, kind: categorical}, {name: genres, kind: categorical}, "
    "{name: release_year, kind: categorical}]",
    "features.item_statistics=[{name: buyers_7d, kind: users, window_days: 7}, "
    "{name: buyers_28d, kind: users, window_days: 28}, {name: days_since_first, kind: days_since_first}, "
    "{name: mean_rating, kind: mean_value, transform: none}]",
    "features.user=[{name: age_band, kind: categorical}, {name: gender, kind: categorical}, "
    "{name: occupation, kind: categorical}]",
    "features.hard_match=[{history: first_genre, candidate: first_genre}, {history: genres, candidate: genres}, "
    "{history: release_year, candidate: release_year}]",
    "labels.tasks=[{name: liked, actions: [liked], loss_weight: 1.0, score_weight: 1.0}]",
    f"histories.max_events={_MAX_HISTORY}",
    "scoring.candidate_buckets=[256, 512, 1024, 2048]",
)


@dataclass(frozen=True)
class Ratings:
    """All ratings as arrays, ordered by time."""

    user: np.ndarray
    item: np.ndarray
    event_us: np.ndarray
    value: np.ndarray

    def where(self, kept: np.ndarray) -> Ratings:
        """Keep some."""
        return Ratings(self.user[kept], self.item[kept], self.event_us[kept], self.value[kept])


@dataclass(frozen=True)
class Request:
    """A user at the moment of one of the own ratings; `past` and `future` are the user's ratings around it."""

    request_id: int
    user_id: int
    time_us: int
    past: Ratings
    future: Ratings


def prepare(*, quick: bool) -> Path:
    """Return the prepared folder, written unless it is there already."""
    regime = QUICK_REGIME if quick else REGIME
    key = key_of([sample.WHEEL.sha256, regime.to_json(), code_hash([Path(sample.__file__), Path(__file__)])])
    folder = ROOT / NAME / f"prepared-{key}"
    if not folder.is_dir():
        wheel = fetch_wheel(sample.WHEEL, folder=DOWNLOADS)
        with draft_folder(folder) as draft:
            facts = _write(draft, wheel, regime)
            write_manifest(draft, name=NAME, key=key, regime=regime, tasks=[TASK], facts=facts)
        log.info("%s prepared: %s", NAME, folder)
    return folder


def requests_between(ratings: Ratings, *, since_us: int, before_us: int, labels_before_us: int) -> Iterator[Request]:
    """Yield the requests whose time lies in [since, before), users in order; labels lie before `labels_before_us`.

    The request time is that of the rating after the share; ratings of that very second lie in the future, with it.
    """
    for user_id in np.unique(ratings.user).tolist():
        own = ratings.where(ratings.user == user_id)
        for number, share in enumerate(SHARES):
            time_us = int(own.event_us[int(share * len(own.user))])
            if since_us <= time_us < before_us:
                past = own.where(own.event_us < time_us)
                future = own.where((own.event_us >= time_us) & (own.event_us < labels_before_us))
                yield Request(user_id * 10 + number, user_id, time_us, past, future)


def item_table(ratings: Ratings, items: pa.Table, *, ds: str) -> pa.Table:
    """Return declared features and statistics of all items as of a block, as join.items.items_at makes them."""
    now_us = request_time_us(ds)
    known = ratings.where(ratings.event_us < now_us)
    ids = items[Col.ITEM_ID].to_numpy()
    place, size = np.searchsorted(ids, known.item), len(ids)

    def count(days: int) -> np.ndarray:
        # A user rates an item once, so ratings are users.
        recent = known.event_us >= now_us - days * _DAY_US
        return np.bincount(place[recent], minlength=size).astype(np.float64)

    first_us = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(first_us, place, known.event_us)
    rated = np.bincount(place, minlength=size)
    mean = np.bincount(place, weights=known.value, minlength=size) / np.maximum(rated, 1)
    statistics = {
        "buyers_7d": pa.array(count(7)),
        "buyers_28d": pa.array(count(28)),
        "days_since_first": pa.array((now_us - first_us) / _DAY_US, mask=rated == 0),
        "mean_rating": pa.array(mean, mask=rated == 0),
    }
    return pa.table({**{name: items[name] for name in items.column_names}, **statistics})


def candidates_of(request: Request, popularity: Mapping[int, int]) -> np.ndarray:
    """Return every item that somebody rated before the block and this user not before the request, by id."""
    return np.setdiff1d(np.array(sorted(popularity), dtype=np.int64), request.past.item)


def request_row(
    request: Request, candidates: np.ndarray, *, ds: str, users: Mapping[int, Mapping[str, Any]], rate: float
) -> dict[str, Any]:
    """Return a training request row; below a rate of 1, candidates without a label are thinned by a seeded draw."""
    liked = np.isin(candidates, request.future.item[request.future.value >= _LIKED])
    drawn = np.random.default_rng([17, request.request_id]).random(len(candidates)) < rate
    kept = candidates[liked | drawn]
    past = request.past
    shift_us = request.time_us - request_time_us(ds)
    newest = slice(max(0, len(past.item) - _MAX_HISTORY), None)
    return {
        Col.DS: ds,
        Col.USER_ID: request.user_id,
        **{user_feature(name): users[request.user_id][name] for name in _USER_FEATURES},
        Col.HISTORY_ITEM_ID: past.item[newest],
        # Down, as Spark's unix_seconds: the source counts in seconds, so nothing is lost.
        Col.HISTORY_TIME_S: (past.event_us[newest] - shift_us) // 1_000_000,
        Col.HISTORY_ACTION: ["liked" if value >= _LIKED else "rated" for value in past.value[newest]],
        Col.HISTORY_VALUE: past.value[newest],
        Col.CANDIDATE_ITEM_ID: kept,
        label(TASK): liked[liked | drawn].astype(np.int32),
        Col.SAMPLING_RATE: np.full(len(kept), rate, dtype=np.float32),
        Col.SAMPLING_WEIGHT: np.ones(len(kept), dtype=np.float32),
        Col.EXPOSED: np.ones(len(kept), dtype=bool),
        REQUEST_ID: request.request_id,
        REQUEST_US: request.time_us,
    }


def _write(folder: Path, wheel: Path, regime: Regime) -> dict[str, Any]:
    table, items = sample.read_ratings(wheel), sample.read_items(wheel)
    ratings = Ratings(*(table[name].to_numpy() for name in (Col.USER_ID, Col.ITEM_ID, "event_us", Col.VALUE)))
    users = {row[Col.USER_ID]: row for row in sample.read_users(wheel).to_pylist()}
    pq.write_table(table, folder / "events.parquet")
    _write_item_events(folder, ratings, regime)
    for name in ("items", "truth", "order"):
        (folder / name).mkdir()
    blocks = [*regime.train, regime.validation, *regime.tests]
    edges = dict(zip(blocks, [*blocks[1:], _END], strict=True))
    thinned, facts = {}, {}
    for ds in blocks:
        pq.write_table(item_table(ratings, items, ds=ds), folder / "items" / f"{ds}.parquet")
        closes = regime.validation if ds in regime.train else edges[ds]
        requests = list(
            requests_between(
                ratings,
                since_us=request_time_us(ds),
                before_us=request_time_us(edges[ds]),
                labels_before_us=request_time_us(closes),
            )
        )
        known = ratings.item[ratings.event_us < request_time_us(ds)]
        popularity = dict(zip(*(part.tolist() for part in np.unique(known, return_counts=True)), strict=True))
        lists = [candidates_of(request, popularity) for request in requests]
        if ds in regime.tests or ds == regime.validation:
            whole = [request_row(r, c, ds=ds, users=users, rate=1.0) for r, c in zip(requests, lists, strict=True)]
            _write_rows(folder / "test" / ds, whole)
            _write_truth(folder, ds, requests)
            _write_order(folder, ds, requests, lists, popularity)
            facts[f"test_users_{ds}"] = len({r.user_id for r in requests if (r.future.value >= _LIKED).any()})
            log.info("%s %s: %d requests of %d users", NAME, ds, len(requests), facts[f"test_users_{ds}"])
        if ds not in regime.tests:
            thinned[ds] = [
                request_row(r, c, ds=ds, users=users, rate=_NEGATIVE_RATE) for r, c in zip(requests, lists, strict=True)
            ]
    mixed = [row for ds in regime.train for row in thinned[ds]]
    order = np.random.default_rng(17).permutation(len(mixed))
    _write_rows(folder / "train", [mixed[i] for i in order])
    _write_rows(folder / "learn" / regime.validation, thinned[regime.validation])
    return {**facts, "negative_rate": _NEGATIVE_RATE}


def _write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True)
    types = {
        Col.HISTORY_ITEM_ID: pa.list_(pa.int64()),
        Col.HISTORY_TIME_S: pa.list_(pa.int64()),
        Col.HISTORY_ACTION: pa.list_(pa.string()),
        Col.HISTORY_VALUE: pa.list_(pa.float64()),
        Col.CANDIDATE_ITEM_ID: pa.list_(pa.int64()),
        label(TASK): pa.list_(pa.int32()),
        Col.SAMPLING_RATE: pa.list_(pa.float32()),
        Col.SAMPLING_WEIGHT: pa.list_(pa.float32()),
        Col.EXPOSED: pa.list_(pa.bool_()),
        Col.DS: pa.string(),
        Col.USER_ID: pa.int64(),
        REQUEST_ID: pa.int64(),
        REQUEST_US: pa.int64(),
    }
    names = list(rows[0])
    columns = {name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in names}
    pq.write_table(pa.table(columns), folder / "part-0.parquet")


def _write_truth(folder: Path, ds: str, requests: Sequence[Request]) -> None:
    liked = [(request, item) for request in requests for item in request.future.item[request.future.value >= _LIKED]]
    columns = {
        REQUEST_ID: pa.array([request.request_id for request, _ in liked], pa.int64()),
        Col.USER_ID: pa.array([request.user_id for request, _ in liked], pa.int64()),
        Col.ITEM_ID: pa.array([item for _, item in liked], pa.int64()),
        label(TASK): pa.array(np.ones(len(liked), dtype=np.int32)),
    }
    pq.write_table(pa.table(columns), folder / "truth" / f"{ds}.parquet")


def _write_order(
    folder: Path, ds: str, requests: Sequence[Request], lists: Sequence[np.ndarray], popularity: Mapping[int, int]
) -> None:
    """The whole catalogue is retrieved, in the order of its popularity before the block; ties by the smaller id."""
    orders = [
        candidates[np.argsort([-popularity[i] for i in candidates.tolist()], kind="stable")] for candidates in lists
    ]
    ids = pa.array([request.request_id for request in requests], pa.int64())
    table = pa.table({REQUEST_ID: ids, "items": pa.array(orders, pa.list_(pa.int64()))})
    pq.write_table(table, folder / "order" / f"{ds}.parquet")


def _write_item_events(folder: Path, ratings: Ratings, regime: Regime) -> None:
    known = ratings.item[ratings.event_us < request_time_us(regime.validation)]
    ids, counts = np.unique(known, return_counts=True)
    pq.write_table(pa.table({Col.ITEM_ID: ids, "events": counts}), folder / "item_events.parquet")
