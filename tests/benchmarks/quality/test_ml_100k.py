"""Requests in the middle of a user's ratings: who sees what, and from when."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.quality.ml_100k import Ratings, Request, candidates_of, item_table, request_row, requests_between
from gesr_core.dates import request_time_us

DS = "1998-01-15"
START_US = request_time_us(DS)
SECOND = 1_000_000
USERS = {1: {"age_band": "20", "gender": "M", "occupation": "other"}}


def ratings_of(*rows: tuple[int, int, int, float]) -> Ratings:
    """Ratings from (user, item, seconds after the block's start, value), in the order of time."""
    user, item, after_s, value = zip(*sorted(rows, key=lambda row: row[2]), strict=True)
    return Ratings(np.array(user), np.array(item), START_US + np.array(after_s) * SECOND, np.array(value))


TEN = ratings_of(*[(1, 100 + n, 10 * n, 5.0 if n % 2 else 3.0) for n in range(10)])


def requests_of(ratings: Ratings, *, since_s: int = 0, before_s: int = 1000, labels_s: int = 1000) -> list[Request]:
    """The requests of a stretch of seconds after the block's start."""
    since, before, labels = (START_US + s * SECOND for s in (since_s, before_s, labels_s))
    return list(requests_between(ratings, since_us=since, before_us=before, labels_before_us=labels))


def test_a_user_asks_when_half_and_more_of_the_ratings_are_in() -> None:
    found = requests_of(TEN)
    assert [(request.time_us - START_US) // SECOND for request in found] == [50, 60, 70, 80, 90]
    assert [len(request.past.item) for request in found] == [5, 6, 7, 8, 9]
    assert [request.request_id for request in found] == [10, 11, 12, 13, 14]


def test_a_request_belongs_to_the_stretch_of_its_own_time_and_its_labels_end_with_it() -> None:
    found = requests_of(TEN, since_s=55, before_s=75, labels_s=75)
    assert [request.request_id for request in found] == [11, 12]
    assert found[0].future.item.tolist() == [106, 107]


def test_ratings_of_the_second_of_the_request_are_not_known_to_it() -> None:
    ratings = ratings_of((1, 1, 0, 5.0), (1, 2, 5, 5.0), (1, 3, 5, 5.0), (1, 4, 9, 5.0))
    first = requests_of(ratings)[0]
    assert (first.past.item.tolist(), first.future.item.tolist()) == ([1], [2, 3, 4])


def test_what_a_user_rated_before_is_no_candidate() -> None:
    request = requests_of(TEN)[0]
    assert candidates_of(request, {101: 3, 106: 1, 900: 2}).tolist() == [106, 900]


def test_a_row_is_shifted_so_that_ages_count_from_the_request() -> None:
    request = requests_of(TEN)[1]
    row = request_row(request, np.array([106, 107, 900]), ds=DS, users=USERS, rate=1.0)
    ages_s = START_US // SECOND - row["history_time_s"]
    assert ages_s.tolist() == [60, 50, 40, 30, 20, 10]
    # 107 was liked later, 106 was only rated.
    assert row["label_liked"].tolist() == [0, 1, 0]
    assert row["history_action"] == ["rated", "liked"] * 3
    assert row["request_us"] == request.time_us


def test_thinning_keeps_every_liked_candidate_and_says_its_rate() -> None:
    request = requests_of(TEN)[0]
    many = np.concatenate([np.arange(105, 110), np.arange(1000, 3000)])
    row = request_row(request, many, ds=DS, users=USERS, rate=0.1)
    assert row["label_liked"].sum() == 3
    assert 120 < len(row["candidate_item_id"]) < 300
    assert set(row["sampling_rate"].tolist()) == {np.float32(0.1)}


def test_statistics_of_a_block_come_from_before_it() -> None:
    day_s = 86_400
    known = ratings_of((1, 1, -3 * day_s, 4.0), (2, 1, -20 * day_s, 2.0), (1, 2, 5, 5.0))
    table = item_table(known, pa.table({"item_id": [1, 2]}), ds=DS)
    assert table.to_pylist() == [
        {
            "item_id": 1,
            "buyers_7d": 1.0,
            "buyers_28d": 2.0,
            "days_since_first": pytest.approx(20.0),
            "mean_rating": 3.0,
        },
        {"item_id": 2, "buyers_7d": 0.0, "buyers_28d": 0.0, "days_since_first": None, "mean_rating": None},
    ]
