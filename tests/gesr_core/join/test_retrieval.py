"""The stand-in retrieval: sources by hand, and what may not matter: later events, id types, layouts, time zones."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import CandidatesConfig, ImpressionsConfig, LabelsConfig, Task
from gesr_core.dates import request_time
from gesr_core.join.impressions import build_impressions, sample_users
from gesr_core.join.retrieval import fit_retrieval, number_events, retrieve
from gesr_core.spark_settings import settings

pytestmark = pytest.mark.spark

Event = tuple[Any, Any, dt.datetime, str, float]
DATES = ("2024-02-01", "2024-02-08")
CANDIDATES = CandidatesConfig(
    max_candidates=9,
    active_days=30,
    own_decay_days=30.0,
    own_items=4,
    popular_items=5,
    popular_days=14,
    als_items=5,
    als_rank=3,
    als_iterations=2,
    als_regularization=0.1,
    als_alpha=10.0,
    als_min_item_events=2,
    als_blocks=1,
    seed=5,
)
RATES = {"user_rate": 1.0, "unlabelled_user_rate": 0.5, "negative_rate": 0.5}
IMPRESSIONS = ImpressionsConfig(dates=2, step_days=7, unexposed_items=1, seed=5, **RATES)
LABELS = LabelsConfig(
    window_days=7,
    tasks=[
        Task(name="bought", actions=["buy"], score_weight=1.0),
        Task(name="spent", actions=["buy"], value_above="user_median"),
    ],
)


def events_df(spark: SparkSession, events: Sequence[Event], *, ids: str = "bigint") -> DataFrame:
    as_id = str if ids == "string" else int
    rows = [(as_id(user), as_id(item), *rest) for user, item, *rest in events]
    schema = f"user_id {ids}, item_id {ids}, event_ts timestamp, action string, value double"
    return spark.createDataFrame(rows, schema)


def some_events(*, seed: int = 1, users: int = 14, items: int = 20, days: int = 50) -> list[Event]:
    """Events from 2024-01-01 on, at every hour of the day."""
    rng = random.Random(seed)
    start = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
    return [
        # Low items are the popular ones.
        (
            rng.randrange(users),
            100 + min(rng.randrange(items), rng.randrange(items)),
            start + dt.timedelta(hours=rng.randrange(24 * days)),
            "buy",
            float(rng.randrange(1, 50)),
        )
        for _ in range(25 * users)
    ]


def build(
    spark: SparkSession, events: Sequence[Event], *, dates: Sequence[str] = DATES, ids: str = "bigint"
) -> tuple[list[Any], list[Any]]:
    """Candidates and impressions of the dates as sorted plain rows, ids as text, doubles as they are."""
    df = events_df(spark, events, ids=ids)
    retrieval = fit_retrieval(df, dates=dates, settings=CANDIDATES, cache=lambda read_often: read_often.persist())
    candidates = retrieve(retrieval, retrieval.users, settings=CANDIDATES)
    impressions = build_impressions(
        candidates,
        df,
        users=sample_users(retrieval.users, retrieval.users, settings=IMPRESSIONS),
        items=retrieval.numbered.items,
        dates=dates,
        labels=LABELS,
        settings=IMPRESSIONS,
    )
    rows = sorted(
        (row["ds"], str(row["user_id"]), [(str(c["item_id"]), *c[1:]) for c in row["candidates"]])
        for row in candidates.collect()
    )
    shown = sorted((row["ds"], str(row["user_id"]), str(row["item_id"]), *row[3:]) for row in impressions.collect())
    spark.catalog.clearCache()
    return rows, shown


@pytest.fixture(scope="module")
def world(spark_session: SparkSession) -> tuple[list[Any], list[Any]]:
    """What `some_events` gives; a module's worth of tests compares with it."""
    return build(spark_session, some_events())


def test_every_active_user_gets_distinct_candidates_of_all_sources(world: tuple[list[Any], list[Any]]) -> None:
    candidates, _ = world
    assert {(ds, int(user)) for ds, user, _ in candidates} == {(ds, user) for ds in DATES for user in range(14)}
    for _, _, of_user in candidates:
        items = [item for item, _, _ in of_user]
        assert len(items) == len(set(items)) <= CANDIDATES.max_candidates
    assert {source for _, _, of_user in candidates for _, source, _ in of_user} == {"own", "popular", "als"}


def test_own_and_popular_candidates_are_those_counted_by_hand(spark: SparkSession) -> None:
    def day(number: int) -> dt.datetime:
        return dt.datetime(2024, 1, number, tzinfo=dt.timezone.utc)

    events: list[Event] = [
        (1, 10, day(2), "buy", 1.0),
        (1, 10, day(2), "buy", 1.0),  # two events, 30 days old: 2 / (1 + 1) = 1
        (1, 11, day(17), "buy", 1.0),  # one, 15 days old: 1 / 1.5; just too old to be popular
        (2, 12, day(30), "buy", 1.0),
        (3, 12, day(31), "buy", 1.0),
        (3, 10, day(31), "buy", 1.0),
        (3, 13, day(31), "buy", 1.0),
        (4, 14, day(1), "buy", 1.0),  # 31 days old: not active
        (5, 15, dt.datetime(2024, 2, 1, tzinfo=dt.timezone.utc), "buy", 1.0),  # at the request time
    ]
    without_als = CANDIDATES.model_copy(update={"als_items": 0, "popular_items": 2})
    retrieval = fit_retrieval(events_df(spark, events), dates=["2024-02-01"], settings=without_als)
    rows = retrieve(retrieval, retrieval.users, settings=without_als).collect()
    found = {row["user_id"]: [(c["item_id"], c["source"]) for c in row["candidates"]] for row in rows}
    assert set(found) == {1, 2, 3}
    assert [tuple(c) for c in next(row for row in rows if row["user_id"] == 1)["candidates"][:2]] == [
        (10, "own", 1.0),
        (11, "own", 1 / 1.5),
    ]
    # Item 12 has two events in 14 days; of 10 and 13, with one each, the one that appeared first is popular.
    assert found[1] == [(10, "own"), (11, "own"), (12, "popular")]
    assert found[2] == [(12, "own"), (10, "popular")]


def test_no_event_from_a_dates_request_time_on_is_used(spark: SparkSession, world: tuple[list[Any], list[Any]]) -> None:
    # Labels of the first date close where the second begins: the cut.
    cut = request_time(DATES[1])
    past = [event for event in some_events() if event[2] < cut]
    later = [
        (user + 3, item + 7, when, "view", value * 9) for user, item, when, _, value in some_events() if when >= cut
    ]
    # New users and items that sort before, between and after the old ones.
    new = [(user, item, cut, "buy", 1.0) for user in (-5, 3, 99) for item in (1, 105, 9999)]
    candidates, impressions = build(spark, [*later, *new, *past])
    assert candidates == world[0]
    first = [row for row in world[1] if row[0] == DATES[0]]
    assert [row for row in impressions if row[0] == DATES[0]] == first
    assert any(row[-2] for row in first)
    # The second date's labels are those of other events now.
    assert impressions != world[1]


def test_string_ids_give_the_same(spark: SparkSession, world: tuple[list[Any], list[Any]]) -> None:
    assert build(spark, some_events(), ids="string") == world


def test_neither_layout_nor_time_zone_nor_other_dates_matter(
    spark: SparkSession, world: tuple[list[Any], list[Any]]
) -> None:
    shuffled = some_events()
    random.Random(2).shuffle(shuffled)
    with settings(spark, {"spark.sql.session.timeZone": "Asia/Tokyo", "spark.sql.shuffle.partitions": "5"}):
        candidates, impressions = build(spark, shuffled, dates=DATES[1:])
    assert candidates == [row for row in world[0] if row[0] == DATES[1]]
    assert impressions == [row for row in world[1] if row[0] == DATES[1]]


def test_numbers_of_known_ids_survive_what_comes_later(spark: SparkSession) -> None:
    def numbers(events: list[Event]) -> dict[str, int]:
        users = number_events(events_df(spark, events)).users.collect()
        return {str(row["user_id"]): row["user_index"] for row in users}

    past = [event for event in some_events() if event[2] < request_time(DATES[0])]
    new: list[Event] = [(user, 1, request_time(DATES[0]), "buy", 1.0) for user in range(-200, 200)]
    before, after = numbers(past), numbers([*new, *past])
    assert {user: after[user] for user in before} == before
    assert len(set(after.values())) == len(after) == 400
