"""Measures of an ordering by hand, and against the definitions that `jobs/evaluate.py` uses."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyspark.sql import SparkSession

from benchmarks.quality.measures import Measured as OfBenchmark, ideal, measure, ranks
from benchmarks.quality.prepared import look_up
from gesr_core.metrics import ranking
from gesr_core.metrics.auc import measure_auc
from gesr_core.metrics.comparison import Measured
from gesr_core.metrics.values import metrics_of
from gesr_core.training.measures import normalised_entropy
from tests.benchmarks.quality.sets import a_test_set
from tests.metric_rows import ROWS_TYPE, Pair, plan, summed, user_batch

ALL, WITHOUT = ranking.ALL, ranking.WITHOUT_TOP_ITEM


# Item 9 is the most bought. Request 1 bought 2 and 9, of which 9 stands first; request 2 bought 9 alone, and 7, which
# nobody retrieved; request 3 has no candidates.
BY_HAND = a_test_set(
    [(1, 1, 0), (1, 2, 1), (1, 3, 0), (1, 9, 1), (2, 1, 0), (2, 9, 1)],
    [(1, 2), (1, 9), (2, 9), (2, 7), (3, 5)],
)
SCORE = np.array([0.5, 0.1, 0.3, 0.9, 0.5, 0.5])


def test_ndcg_and_recall_count_misses_of_retrieval_and_requests_without_candidates() -> None:
    values = measure(BY_HAND, SCORE).values()[ALL]
    best = 1 + 1 / math.log2(3)
    of_1 = (1 + 1 / math.log2(5)) / best
    # The tie at 0.5 goes to item 1: item 9 stands second.
    of_2 = (1 / math.log2(3)) / best
    assert values["ndcg"] == pytest.approx((of_1 + of_2 + 0) / 3)
    assert values["recall"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_without_the_most_bought_item_it_is_gone_from_orderings_and_from_what_was_bought() -> None:
    assert BY_HAND.top_item == 9
    values = measure(BY_HAND, SCORE).values()[WITHOUT]
    # Request 1: item 2 third of 1, 3, 2; request 2: 7 was not retrieved; request 3 has no candidates.
    assert values["ndcg"] == pytest.approx((1 / math.log2(4)) / 3)
    assert values["recall"] == pytest.approx(1 / 3)


def test_gauc_weighs_requests_by_their_pairs_and_ties_count_half() -> None:
    # Request 1: item 9 beats 1 and 3, item 2 beats none: 2 of 4. Request 2: one tie.
    values = measure(BY_HAND, SCORE).values()[ALL]
    assert values["gauc"] == pytest.approx((0.5 * 4 + 0.5 * 2) / 6)


def test_a_thinned_pair_counts_for_those_it_stands_for_in_ne_and_auc() -> None:
    thinned = a_test_set([(1, 1, 0), (1, 2, 1)], [(1, 2)], weight=[3.0, 1.0])
    logit = np.array([0.2, -0.4])
    whole = a_test_set([(1, 1, 0), (1, 3, 0), (1, 4, 0), (1, 2, 1)], [(1, 2)])
    repeated = np.array([0.2, 0.2, 0.2, -0.4])
    for name in ("ne", "auc"):
        found = measure(thinned, logit, logit_P=logit).values()[ALL][name]
        assert found == pytest.approx(measure(whole, repeated, logit_P=repeated).values()[ALL][name])


def test_ne_is_that_of_training() -> None:
    rng = np.random.default_rng(3)
    label, logit = rng.integers(0, 2, 50), rng.normal(size=50)
    weight = np.where(label > 0, 1.0, 4.0)
    test = a_test_set([(n % 7, n, int(label[n])) for n in range(50)], [(0, 0)], weight=weight)
    assert measure(test, logit, logit_P=logit).values()[ALL]["ne"] == pytest.approx(
        normalised_entropy(*(torch.from_numpy(a.astype(np.float64)) for a in (logit, label, weight)))
    )


def test_orderings_without_logits_have_no_ne() -> None:
    assert "ne" not in measure(BY_HAND, SCORE).values()[ALL]


def test_ties_go_to_the_smaller_item_id() -> None:
    truth = [(0, 5), (1, 5)]
    last = a_test_set([(0, 5, 1), (0, 2, 0), (1, 5, 1), (1, 9, 0)], truth)
    ndcg_U = measure(last, np.ones(4)).sums[ALL].ndcg_U
    assert ndcg_U.tolist() == pytest.approx([1 / math.log2(3), 1])


def test_ranks_begin_anew_in_each_unit() -> None:
    assert ranks(np.array([0, 0, 0, 2, 5, 5])).tolist() == [1, 2, 3, 1, 1, 2]


def test_the_ideal_gain_stops_at_the_cut() -> None:
    best = ideal(np.array([0, 1, 2, 10, 25]))
    assert best[:3].tolist() == pytest.approx([0, 1, 1 + 1 / math.log2(3)])
    assert best[3] == best[4]


def test_a_looked_up_pair_that_is_not_there_gets_the_missing_value() -> None:
    keys = (np.array([1, 1, 2]), np.array([5, 6, 5]))
    wanted = (np.array([2, 1, 3, 2]), np.array([5, 6, 5, 6]))
    assert look_up(wanted, keys, np.array([10, 11, 12]), missing=-1).tolist() == [12, 11, -1, -1]


@pytest.mark.spark
def test_measures_agree_with_those_of_evaluate_on_random_orderings(spark: SparkSession) -> None:
    rng = np.random.default_rng(11)
    truth = sorted({(int(u), int(i)) for u, i in zip(rng.integers(0, 12, 60), rng.integers(0, 20, 60), strict=True)})
    pairs = [
        (user, int(item), int((user, int(item)) in truth))
        for user in range(12)
        for item in sorted(rng.choice(20, 15, replace=False))
    ]
    # Few values, so that ties occur.
    score = rng.integers(0, 6, len(pairs)).astype(np.float64)
    ours = measure(a_test_set(pairs, truth), score, logit_P=score - 3)
    for segment, values in theirs(spark, truth, pairs, score).items():
        assert {name: ours.values()[segment][name] for name in values} == pytest.approx(values, rel=1e-9)
    assert isinstance(ours, OfBenchmark)


def theirs(
    spark: SparkSession, truth: list[tuple[int, int]], pairs: list[tuple[int, int, int]], score: np.ndarray
) -> dict[str, dict[str, float]]:
    """The same measures by gesr_core.metrics, over all pairs as if all were published."""
    bought = spark.createDataFrame(truth, "user_id bigint, item_id bigint")
    top = ranking.top_item(bought)
    users: dict[int, list[Pair]] = {user: [] for user, _ in truth}
    # Of equal scores the smaller item id stands first.
    for user in {user for user, _, _ in pairs}:
        mine = sorted((-float(s), item, label) for (u, item, label), s in zip(pairs, score, strict=True) if u == user)
        users.setdefault(user, []).extend(
            Pair(item, place, place, -falling, -falling - 3, label == 1, top=item == top)
            for place, (falling, item, label) in enumerate(mine, start=1)
        )
    for user, item in truth:
        if item not in {pair.item_id for pair in users[user]}:
            users[user].append(Pair(item, bought=True, top=item == top))
    batch = user_batch(users)
    of = plan(ks=(10,), published_k=20, without_top_item=True, replicates=20)
    rows = spark.createDataFrame(pa.Table.from_batches([batch]).to_pylist(), ROWS_TYPE)
    aucs = measure_auc(rows, Measured(rows, of).left_in())
    found = metrics_of(summed(batch, of), aucs)
    wanted = ("ndcg", "recall", "gauc", "auc", "ne")
    of_model = [m for m in found if m.ordering == ranking.MODEL and m.metric in wanted]
    return {segment: {m.metric: m.value for m in of_model if m.segment == segment} for segment in (ALL, WITHOUT)}
