"""A publication measured in Spark is what plain Python makes of the same tables, whatever their order of rows."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import EvaluationConfig, load_config
from gesr_core.errors import InputError
from gesr_core.metrics.comparison import Comparison, compare, measure, prepared
from gesr_core.metrics.ranking import Metric
from gesr_core.metrics.segments import band_thresholds
from tests.metric_rows import Pair, measured, user_batch, values_of

sklearn_metrics = pytest.importorskip("sklearn.metrics")
pytestmark = [pytest.mark.spark, pytest.mark.slow]

USERS, ITEMS, K = 30, 40, 6
SOURCES = ("", "own", "popular")
SCORES = (
    "user_id bigint, ranked array<struct<item_id:bigint,rank:int,score:float,logit_bought:float>>, "
    "run_id string, model_version string"
)
CANDIDATES = "user_id bigint, candidates array<struct<item_id:bigint,source:string,retrieval_score:double>>"
SETTINGS = load_config(
    "local",
    overrides=[
        "evaluation.ks=[1, 3, 6, 50]",
        "evaluation.replicates=20",
        "evaluation.segments={history_length: [3, 8], source: true, popularity: {head: 0.5, middle: 0.8}, user: [age]}",
    ],
).evaluation


@dataclass
class World:
    """Plain tables: candidates (user, item, source, score), best K of each user, what was bought and picked."""

    candidates: dict[int, list[tuple[int, str | None, float]]]
    ranked: dict[int, list[tuple[int, float]]]
    bought: set[tuple[int, int]]
    picked: set[tuple[int, int]]
    popularity: dict[int, float]
    events: dict[int, int]
    age: dict[int, str | None]

    @staticmethod
    def of(seed: int) -> World:
        rng = random.Random(seed)
        candidates, ranked = {}, {}
        bought, picked = set(), set()
        for user in range(USERS):
            items = rng.sample(range(ITEMS), rng.choice([1, 4, 9, 15]))
            rows = [(item, rng.choice(["own", "popular", None]), round(rng.random(), 1)) for item in items]
            rows += [(item, "own", 0.5) for item in items[:2]]
            # User 3 is published and retrieved no more; user 4 has candidates and is not published.
            if user != 3:
                candidates[user] = rows
            best = sorted(((round(rng.gauss(0, 1), 3), item) for item in items), key=lambda b: (-b[0], b[1]))[:K]
            if user != 4:
                ranked[user] = [(item, score) for score, item in best]
            bought |= {(user, item) for item in rng.sample(range(ITEMS), rng.choice([0, 1, 6])) if item != 39}
            bought |= {(user, items[0])} if user % 3 == 0 else set()
            picked |= {(user, item) for item in items[:3]}
        return World(
            candidates, ranked, bought, picked,
            {item: float(rng.randint(1, 9)) for item in range(ITEMS) if item % 5},
            {user: rng.randint(1, 12) for user in range(1, USERS)},
            {user: rng.choice(["A", "B", None]) for user in range(USERS) if user % 7},
        )  # fmt: skip

    def comparison(self, spark: SparkSession, *, run_id: str = "run-1") -> Comparison:
        def df(rows: list[Any], schema: str) -> DataFrame:
            return spark.createDataFrame(rows, schema)

        ranked = [
            (u, [(item, n, s, s) for n, (item, s) in enumerate(best, start=1)], run_id, "toy")
            for u, best in self.ranked.items()
        ]
        pairs = "user_id bigint, item_id bigint"
        return Comparison(
            run_id=run_id,
            model_version="toy",
            task="bought",
            scores=df(ranked, SCORES),
            candidates=df(list(self.candidates.items()), CANDIDATES),
            truth=df(sorted(self.bought), pairs),
            popularity=df(list(self.popularity.items()), "item_id bigint, value double"),
            active_users=20,
            catalogue_items=ITEMS,
            picked=df(sorted(self.picked), pairs),
            events=df(list(self.events.items()), "user_id bigint, events bigint"),
            attributes=df(list(self.age.items()), "user_id bigint, user_age string"),
        )

    def rows(self, *, users: set[int] | None = None) -> tuple[dict[int, list[Pair]], dict[int, list[int]]]:
        """The joined pairs of users, and their segments, in plain Python."""
        counted: dict[float, int] = {}
        for value in self.popularity.values():
            counted[value] = counted.get(value, 0) + 1
        bands = band_thresholds(counted, [0.5, 0.8])
        buyers: dict[int, int] = {}
        for _, item in self.bought:
            buyers[item] = buyers.get(item, 0) + 1
        top = min(buyers, key=lambda item: (-buyers[item], item))
        pairs: dict[int, list[Pair]] = {}
        for user in range(USERS):
            places = {item: place for place, item in enumerate(in_turns(self.candidates.get(user, [])), start=1)}
            best = {item: (n, s) for n, (item, s) in enumerate(self.ranked.get(user, []), start=1)}
            mine = {item for u, item in self.bought | self.picked if u == user} | set(places) | set(best)
            for item in mine if users is None or user in users else ():
                popularity = self.popularity.get(item, 0.0)
                mask = sum(
                    1 << SOURCES.index(s or "")
                    for s in {c[1] or "" for c in self.candidates.get(user, []) if c[0] == item}
                )
                mask |= 1 << (len(SOURCES) + sum(popularity < least for least in bands))
                rank, score = best.get(item, (None, None))
                pairs.setdefault(user, []).append(
                    Pair(
                        item, places.get(item), rank, None if score is None else float32(score),
                        None if score is None else float32(score), (user, item) in self.bought,
                        (user, item) in self.picked, item == top, popularity, 0.0, mask,
                    )
                )  # fmt: skip
        return pairs, {user: self.segments(user) for user in pairs}

    def segments(self, user: int) -> list[int]:
        events = self.events.get(user, 0)
        age = self.age.get(user) or "unknown"
        return [(events >= 3) + (events >= 8), 3 + ["A", "B", "unknown"].index(age)]


def in_turns(candidates: list[tuple[int, str | None, float]]) -> list[int]:
    """Round robin over the sources: the best of each, then the second of each; a duplicate at its first place."""
    queues = []
    for source in SOURCES:
        own = [(-score, item) for item, s, score in candidates if (s or "") == source]
        queues.append([item for _, item in sorted(own)])
    order = []
    for turn in range(max(map(len, queues), default=0)):
        order += [queue[turn] for queue in queues if turn < len(queue)]
    return list(dict.fromkeys(order))


def float32(value: float) -> float:
    import numpy as np

    return float(np.float32(value))


@pytest.fixture(scope="module")
def found(spark_session: SparkSession) -> tuple[World, list[Metric], Any]:
    """A world, its metrics, and what was summed."""
    world = World.of(1)
    comparison = world.comparison(spark_session)
    metrics = measure(comparison, settings=SETTINGS)
    with prepared(comparison, settings=SETTINGS) as ready:
        plan = ready.plan
    return world, metrics, plan


def test_every_value_is_that_of_the_same_tables_joined_in_plain_python(found: Any) -> None:
    world, metrics, plan = found
    assert plan.ks == (1, 3, 6)
    assert plan.published_k == K
    assert plan.pair_segments[:3] == ("source:", "source:own", "source:popular")
    assert plan.pair_segments[3:] == ("popularity:head", "popularity:middle", "popularity:tail")
    assert plan.user_segments[:3] == ("history_length:0-2", "history_length:3-7", "history_length:8+")
    assert plan.user_segments[3:] == ("user.age:A", "user.age:B", "user.age:unknown")
    pairs, segments = world.rows()
    plain = measured(user_batch(pairs, segments=segments), plan)
    compared = 0
    for m in plain:
        # Chance is a hash that Spark draws.
        if m.ordering != "random":
            [ours] = [
                o for o in metrics if (o.ordering, o.metric, o.k, o.segment) == (m.ordering, m.metric, m.k, m.segment)
            ]
            assert (ours.value, ours.n) == (pytest.approx(m.value, rel=1e-9, abs=1e-12), m.n), m
            compared += 1
    assert compared > 500
    of_spark = {named(m) for m in metrics if m.metric not in ("auc", "catalogue_coverage") and m.ordering != "random"}
    assert of_spark <= {named(m) for m in plain}


def named(m: Metric) -> tuple[str, str, int | None, str]:
    return m.ordering, m.metric, m.k, m.segment


def test_auc_is_scikit_learns_in_every_segment(found: Any) -> None:
    world, metrics, plan = found
    pairs, segments = world.rows()
    published = [
        (p, segments[user]) for user, mine in pairs.items() if user in world.candidates for p in mine if p.rank
    ]
    values = {
        "model": lambda p: p.score,
        "retrieval_order": lambda p: -(p.place or 0),
        "popularity": lambda p: p.popularity,
    }
    kept = {"all": lambda p, s: True, "without_top_item": lambda p, s: not p.top}
    kept |= {name: (lambda p, s, n=n: n in s) for n, name in enumerate(plan.user_segments)}
    kept |= {name: (lambda p, s, b=b: p.mask >> b & 1) for b, name in enumerate(plan.pair_segments)}
    seen = 0
    for segment, is_kept in kept.items():
        chosen = [p for p, s in published if is_kept(p, s)]
        if len({p.bought for p in chosen}) < 2:
            continue
        for ordering, value in values.items():
            theirs = sklearn_metrics.roc_auc_score([p.bought for p in chosen], [value(p) for p in chosen])
            [ours] = [m for m in metrics if (m.metric, m.segment, m.ordering) == ("auc", segment, ordering)]
            assert (ours.value, ours.n) == (pytest.approx(theirs, abs=1e-12), len(chosen)), (segment, ordering)
            assert ours.ci_low is not None
            seen += 1
    assert seen >= 24


def test_coverage_is_the_share_of_the_catalogue_that_anybody_is_shown(found: Any) -> None:
    world, metrics, _ = found
    got = values_of([m for m in metrics if m.metric == "catalogue_coverage"])
    for k in (1, 3, 6):
        shown = {item for best in world.ranked.values() for item, _ in best[:k]}
        assert got["catalogue_coverage", k] == pytest.approx(len(shown) / ITEMS)
    young = {item for user, best in world.ranked.items() if world.age.get(user) == "A" for item, _ in best[:3]}
    of_young = values_of(metrics, segment="user.age:A")
    assert of_young["catalogue_coverage", 3] == pytest.approx(len(young) / ITEMS)
    retrieved = {item for rows in world.candidates.values() for item in in_turns(rows)[:3]}
    of_order = values_of(metrics, ordering="retrieval_order")
    assert of_order["catalogue_coverage", 3] == pytest.approx(len(retrieved) / ITEMS)


def test_the_order_of_rows_and_partitions_changes_no_bit(found: Any, spark: SparkSession) -> None:
    world, metrics, _ = found
    given = world.comparison(spark)
    moved = {
        name: getattr(given, name).repartition(3).orderBy("user_id", ascending=False)
        for name in ("scores", "candidates", "truth", "picked", "events", "attributes")
    }
    moved["popularity"] = given.popularity.repartition(3).orderBy("item_id", ascending=False)
    assert measure(replace(given, **moved), settings=SETTINGS) == metrics


def test_two_publications_differ_over_the_users_that_both_have(spark: SparkSession) -> None:
    world, other = World.of(1), World.of(1)
    # The other ranks the other way round, and has published fewer users.
    other.ranked = {u: [(i, -s) for i, s in best[::-1]] for u, best in world.ranked.items() if u % 4}
    ours, theirs = world.comparison(spark), other.comparison(spark, run_id="run-2")
    settings = SETTINGS.model_copy(update={"segments": load_config("prod").evaluation.segments})
    differences = compare(ours, theirs, settings=settings)
    assert {m.ordering for m in differences} == {"against:run-2"}
    with prepared(ours, settings=settings) as ready:
        plan = ready.plan
    mine, others = (values_of(measured(user_batch(w.rows(users=set(other.ranked))[0]), plan)) for w in (world, other))
    got = {(m.metric, m.k): m for m in differences if m.segment == "all"}
    for metric in ("ndcg", "recall", "mrr", "novelty"):
        for k in (1, 3, 6):
            expected = mine[metric, k] - others[metric, k]
            assert got[f"{metric}_difference", k].value == pytest.approx(expected, abs=1e-12), (metric, k)
    again = compare(ours, replace(ours, run_id="run-3"), settings=settings)
    assert {(m.value, m.ci_low, m.ci_high) for m in again} == {(0.0, 0.0, 0.0)}


def test_what_cannot_be_compared_is_said(spark: SparkSession) -> None:
    world, other = World.of(1), World.of(1)
    other.ranked = {10_000: [(1, 0.5)]}
    with pytest.raises(InputError, match="runs run-1 and run-2 published no user in common"):
        compare(world.comparison(spark), other.comparison(spark, run_id="run-2"), settings=SETTINGS)
    deep: EvaluationConfig = SETTINGS.model_copy(update={"ks": [50]})
    with pytest.raises(InputError, match=r"the best 6 are published, fewer than any of evaluation.ks \[50\]"):
        measure(world.comparison(spark), settings=deep)
