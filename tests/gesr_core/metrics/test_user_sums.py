"""What users add to the sums, by hand: ranks, recall, NDCG, MRR, survival, novelty, calibration, segments. No JVM."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gesr_core.metrics.ranking import ALL, ORDERINGS, WITHOUT_TOP_ITEM
from gesr_core.metrics.user_sums import Users, add_partitions, places, sum_partition, sum_users
from gesr_core.metrics.values import metrics_of
from tests.metric_rows import Pair, measured, plan, summed, user_batch, values_of

# Of all users alone.
CURVE = ("calibration_predicted", "calibration_observed")
SECOND, THIRD = 1 / math.log2(3), 1 / math.log2(4)


def listed(tops: dict[int, list[int]], truth: set[tuple[int, int]], *, top: int | None = None, **of: Any) -> Any:
    """Rows of users whose candidates are given best first, as published and in every ordering."""
    users: dict[int, list[Pair]] = {}
    for user in {*tops, *(user for user, _ in truth)}:
        items = tops.get(user, [])
        ranked = [
            Pair(
                item,
                place,
                place,
                -place,
                0.0,
                (user, item) in truth,
                popularity=-place,
                random=-place,
                top=item == top,
            )
            for place, item in enumerate(items, start=1)
        ]
        missed = [Pair(item, bought=True, top=item == top) for u, item in truth if u == user and item not in items]
        users[user] = [*ranked, *missed]
    return user_batch(users, **of)


def test_recall_ndcg_and_mrr_by_hand() -> None:
    # User 1 bought three items, of which 50 was never retrieved; user 2 one that stands third; user 3 none retrieved.
    truth = {(1, 10), (1, 11), (1, 50), (2, 12), (3, 60)}
    batch = listed({1: [10, 99, 11], 2: [97, 98, 12]}, truth)
    metrics = measured(batch, plan(ks=[2, 3]))
    expected = {
        ("recall", 2): (1 / 3 + 0 + 0) / 3,
        ("recall", 3): (2 / 3 + 1 + 0) / 3,
        ("ndcg", 2): (1 / (1 + SECOND) + 0 + 0) / 3,
        ("ndcg", 3): ((1 + THIRD) / (1 + SECOND + THIRD) + THIRD + 0) / 3,
        ("mrr", 2): (1 + 0 + 0) / 3,
        ("mrr", 3): (1 + 1 / 3 + 0) / 3,
        # Among retrieved positives: the two users who have one.
        ("recall_of_retrieved", 2): (1 / 2 + 0) / 2,
        ("recall_of_retrieved", 3): (1 + 1) / 2,
        ("ndcg_of_retrieved", 2): (1 / (1 + SECOND) + 0) / 2,
        ("ndcg_of_retrieved", 3): ((1 + THIRD) / (1 + SECOND) + THIRD) / 2,
        ("survival", 100): 3 / 3,
        ("survival_of_bought", 100): 3 / 5,
    }
    for ordering in ORDERINGS:
        got = values_of(metrics, ordering=ordering)
        assert {key: got[key] for key in expected} == pytest.approx(expected), ordering


def test_without_an_item_the_next_ones_move_up() -> None:
    truth = {(1, 7), (1, 8), (2, 7)}
    found = measured(listed({1: [7, 8], 2: [7, 8]}, truth, top=7), plan(ks=[1], without_top_item=True))
    assert values_of(found, segment=WITHOUT_TOP_ITEM)["recall", 1] == 1.0
    # User 2 bought nothing else and is no longer counted.
    assert {m.n for m in found if m.segment == WITHOUT_TOP_ITEM and m.metric == "recall"} == {1}


def test_what_was_not_published_does_not_move_up() -> None:
    of = plan(ks=[1], published_k=1, without_top_item=True)
    found = measured(listed({1: [7, 8]}, {(1, 8)}, top=7), of)
    assert values_of(found, segment=WITHOUT_TOP_ITEM)["recall", 1] == 0.0


def test_ties_go_to_the_earlier_pair_and_no_value_has_no_place() -> None:
    user_P, value_P = np.array([0, 0, 0, 0, 1, 1]), np.array([5.0, 7.0, np.nan, 5.0, 1.0, 2.0])
    assert places(user_P, value_P).tolist() == [2, 1, np.inf, 3, 2, 1]
    assert places(np.zeros(0, int), np.zeros(0)).tolist() == []


# Of three sources (bits 0, 1) and the late ranker: user 1 published 10 and 11 of four candidates.
SURVIVING = {
    1: [
        Pair(10, 1, 1, 0.9, 2.0, bought=True, picked=True, mask=0b01),
        Pair(11, 2, 2, 0.8, 1.0, bought=True, mask=0b11),
        Pair(12, 3, bought=True, picked=True, mask=0b10),
        Pair(13, 4, mask=0b10),
        Pair(14, bought=True, picked=True),
    ],
    2: [Pair(10, 1, 1, 0.1, -1.0, mask=0b01), Pair(11, 2, bought=True, mask=0b10)],
}


def test_survival_is_of_pairs_in_all_and_by_source() -> None:
    found = measured(user_batch(SURVIVING), plan(ks=[1], published_k=2, pair_segments=("source:a", "source:b")))
    expected = {
        # Bought and retrieved: 10, 11, 12 of user 1 and 11 of user 2; of these 10 and 11 of user 1 are published.
        (ALL, "survival"): 2 / 4,
        (ALL, "survival_of_bought"): 2 / 5,
        (ALL, "ranker_survival"): 1 / 2,
        (ALL, "ranker_survival_of_picked"): 1 / 3,
        ("source:a", "survival"): 2 / 2,
        ("source:b", "survival"): 1 / 3,
        ("source:a", "ranker_survival"): 1 / 1,
        ("source:b", "ranker_survival"): 0 / 1,
    }
    of_model = {(m.segment, m.metric): m for m in found if m.ordering == "model" and "survival" in m.metric}
    assert {key: m.value for key, m in of_model.items()} == pytest.approx(expected)
    assert of_model[ALL, "survival"].n == 4
    # Retrieval order's first two: 10 and 11 of user 1, both items of user 2.
    assert values_of(found, ordering="retrieval_order")["survival", 2] == pytest.approx(3 / 4)


def test_nothing_is_said_of_picks_where_there_are_none() -> None:
    found = measured(user_batch({1: [Pair(1, 1, 1, 0.5, 0.0, bought=True)]}), plan(ks=[1]))
    assert not {m.metric for m in found if m.metric.startswith("ranker")}


def test_novelty_is_the_mean_of_what_an_item_tells() -> None:
    # Of 8 active users: 4 had item 1 (1 bit), 1 had item 2, none had item 3: counted as one (3 bits).
    users = {
        1: [
            Pair(1, 1, 1, 0.9, 0.0, popularity=4.0),
            Pair(2, 2, 2, 0.8, 0.0, popularity=1.0),
            Pair(3, 3, 3, 0.7, 0.0),
        ],
        2: [Pair(1, 1, 1, 0.5, 0.0, popularity=4.0)],
        3: [Pair(9, bought=True)],
    }
    found = measured(user_batch(users), plan(ks=[1, 3], active_users=8))
    assert values_of(found)["novelty", 1] == pytest.approx((1 + 1) / 2)
    assert values_of(found)["novelty", 3] == pytest.approx(((1 + 3 + 3) / 3 + 1) / 2)
    # Users 1 and 2: who has nothing listed is not counted.
    assert {m.n for m in found if m.metric == "novelty"} == {2}


def test_the_calibration_curve_by_hand() -> None:
    def pair(item: int, logit: float, bought: bool) -> Pair:
        return Pair(item, item, item, logit, logit, bought)

    users = {1: [pair(1, -2.0, False), pair(2, 0.0, True)], 2: [pair(1, 0.0, False), pair(2, 3.0, True)]}
    found = measured(user_batch(users), plan(ks=[1], calibration_edges=(-1.0, 5.0)))
    low, middle, high = (1 / (1 + math.exp(-logit)) for logit in (-2.0, 0.0, 3.0))
    # Bin 1: one pair at -2; bin 2: the others; nothing lies above 5.
    got = {(m.metric, m.k): (m.value, m.n) for m in found if m.metric.startswith("calibration")}
    mean = (2 * middle + high) / 3
    assert {key: value for key, (value, _) in got.items()} == pytest.approx(
        {
            ("calibration_predicted", 1): low,
            ("calibration_observed", 1): 0.0,
            ("calibration_predicted", 2): mean,
            ("calibration_observed", 2): 2 / 3,
            ("calibration_error", None): (1 * low + 3 * abs(mean - 2 / 3)) / 4,
        }
    )
    assert {key[1]: n for key, (_, n) in got.items()} == {1: 1, 2: 3, None: 4}


def test_a_segment_of_users_is_what_its_users_alone_would_give() -> None:
    truth = {(1, 10), (2, 21), (3, 31), (3, 99)}
    tops = {1: [10, 11], 2: [20, 21], 3: [30, 31], 4: [40]}
    of = plan(user_segments=("history_length:0", "history_length:1+", "user.age:B"))
    whole = measured(listed(tops, truth, segments={1: [0], 2: [1, 2], 3: [1], 4: [0]}), of)
    alone = measured(listed({u: tops[u] for u in (2, 3)}, {t for t in truth if t[0] in (2, 3)}), plan())
    expected = {key: value for key, value in values_of(alone).items() if key[0] not in CURVE}
    assert values_of(whole, segment="history_length:1+") == expected
    assert values_of(whole, segment="user.age:B")["recall", 2] == 1.0
    first = {m.metric: m for m in whole if m.segment == "history_length:0" and m.ordering == "model" and m.k == 1}
    assert (first["recall"].n, first["novelty"].n) == (1, 2)


def test_a_segment_without_users_is_absent() -> None:
    of = plan(user_segments=("user.age:A", "user.age:B"))
    found = measured(listed({1: [10]}, {(1, 10)}, segments={1: [1]}), of)
    assert {m.segment for m in found} == {ALL, "user.age:B"}


def test_a_segment_of_pairs_keeps_the_places_of_the_whole_list() -> None:
    # The list is 10 (head), 11 (tail), 12 (head); what was bought is 11 and 12.
    users = {
        1: [
            Pair(10, 1, 1, 0.9, 1.0, mask=0b01),
            Pair(11, 2, 2, 0.8, 0.0, bought=True, mask=0b10),
            Pair(12, 3, 3, 0.7, -1.0, bought=True, mask=0b01),
        ]
    }
    found = measured(user_batch(users), plan(ks=[2, 3], pair_segments=("popularity:head", "popularity:tail")))
    head, tail = (values_of(found, segment=f"popularity:{band}") for band in ("head", "tail"))
    assert (head["recall", 2], head["recall", 3], head["mrr", 3]) == pytest.approx((0, 1, 1 / 3))
    assert (tail["recall", 2], tail["ndcg", 2]) == pytest.approx((1, SECOND))
    assert head["base_rate", None] == pytest.approx(1 / 2)
    # The tail's pairs are positive alone.
    assert ("ne", None) not in tail
    assert ("gauc", None) not in tail


def test_a_user_without_positives_counts_for_pairs_alone_and_one_class_has_no_ne() -> None:
    found = measured(user_batch({1: [Pair(1, 1, 1, 0.5, 0.1), Pair(2, 2, 2, 0.4, 0.0)]}), plan())
    assert {m.metric for m in found if m.ordering == "model"} == {
        *("novelty", "calibration_error", "calibration_predicted", "calibration_observed")
    }


def test_a_published_user_without_candidates_is_in_no_pair_metric() -> None:
    gone = {1: [Pair(1, None, 1, 0.5, 0.1, bought=True), Pair(2, None, 2, 0.4, 0.0)]}
    found = measured(user_batch(gone), plan())
    assert values_of(found)["recall", 2] == 0.0
    assert not {m.metric for m in found} & {"ne", "gauc", "calibration_error", "novelty"}


def random_users(rng: np.random.Generator, *, users: int) -> dict[int, list[Pair]]:
    found = {}
    for user in range(users):
        items = rng.choice(60, size=rng.integers(2, 20), replace=False)
        places_ = rng.permutation(len(items)) + 1
        published = rng.integers(1, len(items) + 1)
        scores = np.sort(rng.normal(size=published))[::-1]
        found[user] = [
            Pair(
                int(item), int(place), n + 1 if n < published else None,
                float(scores[n]) if n < published else None, float(scores[n]) if n < published else None,
                bool(rng.random() < 0.2), popularity=float(rng.integers(0, 9)), random=float(rng.normal()),
                mask=int(rng.integers(0, 4)), top=bool(item == 7),
            )
            for n, (item, place) in enumerate(zip(items, places_, strict=True))
        ]  # fmt: skip
    return found


def test_the_order_of_users_batches_and_partitions_changes_no_value() -> None:
    users = random_users(np.random.default_rng(3), users=40)
    of = plan(pair_segments=("source:a", "source:b"), without_top_item=True, calibration_edges=(-0.5, 0.5))
    whole = sum_users(Users.of(user_batch(users)), of)
    parts = [dict(list(users.items())[start::3]) for start in (2, 0, 1)]
    rows = [
        pa.Table.from_batches(sum_partition([user_batch(part), user_batch({})], of, partition=number))
        for number, part in enumerate(parts)
    ]
    table = pa.concat_tables([rows[1], rows[0], rows[2]])
    for (segment, ordering), sums in whole.items():
        chosen = [
            s == segment and o == ordering
            for s, o in zip(*(table[n].to_pylist() for n in ("segment", "ordering")), strict=True)
        ]
        added = add_partitions(table.filter(pa.array(chosen)))
        assert added["sums"][0].values.to_numpy() == pytest.approx(sums.ravel(), rel=1e-12, abs=1e-12)


def test_sums_of_nobody_are_no_metrics() -> None:
    assert measured(user_batch({}), plan()) == []


def test_an_interval_holds_its_value_and_needs_two_users() -> None:
    users = {user: [0, 1] for user in range(300)}
    found = measured(listed(users, {(u, u % 3) for u in users}), plan(ks=[1], replicates=400))
    metric = next(m for m in found if m.metric == "recall" and m.ordering == "model")
    # The bootstrap of a mean of 300 users is all but normal.
    half = 1.96 * math.sqrt((1 / 3) * (2 / 3) / 300)
    assert metric.value == pytest.approx(1 / 3)
    assert metric.ci_low == pytest.approx(1 / 3 - half, abs=0.15 * half)
    assert metric.ci_high == pytest.approx(1 / 3 + half, abs=0.15 * half)
    alone = measured(listed({1: [0]}, {(1, 0)}), plan(ks=[1]))[0]
    assert (alone.ci_low, alone.ci_high) == (None, None)


def test_the_interval_of_auc_lies_around_the_exact_value() -> None:
    batch = user_batch(random_users(np.random.default_rng(4), users=60))
    sums = summed(batch, plan(auc_edges={name: tuple(np.linspace(-2, 8, 40)) for name in ORDERINGS}))
    [auc] = [m for m in metrics_of(sums, {(ALL, "model"): (0.5, 100)}) if m.metric == "auc"]
    assert auc.ci_low is not None
    assert auc.ci_high is not None
    assert auc.ci_low < auc.value == 0.5 < auc.ci_high
