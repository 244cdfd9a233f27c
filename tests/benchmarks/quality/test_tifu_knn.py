"""TIFU-KNN on four users that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.tifu_knn import Decay, basket_weights, score, user_vectors
from tests.benchmarks.quality.sets import a_test_set


def test_baskets_fall_into_groups_from_the_newest_and_decay_within_and_between() -> None:
    # Five baskets in two groups: the newest three, and the other two; each group a mean, and the mean of both.
    weight = basket_weights(np.arange(5), np.full(5, 5), Decay(within=0.5, between=0.1, groups=2))
    newest = np.array([1, 0.5, 0.25]) / 3 / 2
    oldest = np.array([1, 0.5]) / 2 * 0.1 / 2
    assert weight == pytest.approx(np.concatenate([newest, oldest]))


def test_fewer_baskets_than_groups_stand_alone() -> None:
    weight = basket_weights(np.arange(2), np.full(2, 2), Decay(within=0.5, between=0.1, groups=7))
    assert weight == pytest.approx([0.5, 0.05])


def test_an_item_counts_once_in_a_basket_and_a_basket_is_a_day() -> None:
    users, items, days = np.array([7, 7, 7, 7]), np.array([30, 30, 30, 40]), np.array([1, 2, 2, 2])
    vectors = user_vectors(users, items, days, decay=Decay(1.0, 1.0, 7))
    assert vectors.item_ids.tolist() == [30, 40]
    assert vectors.matrix.to_dense().tolist() == [pytest.approx([1.0, 0.5])]


def test_scores_blend_the_own_vector_with_the_mean_of_the_nearest_users() -> None:
    # User 1 bought 10; user 2 bought 10 and 20 in one basket; user 3 bought 30; nobody is nearer to user 1 than user 2.
    users, items = np.array([1, 2, 2, 3]), np.array([10, 10, 20, 30])
    vectors = user_vectors(users, items, np.zeros(4, dtype=np.int64), decay=Decay(1.0, 1.0, 7))
    test = a_test_set([(1, 10, 0), (1, 20, 1), (1, 30, 0), (1, 99, 0), (5, 10, 0)], [(1, 20)])
    one, two = score(vectors, test, [(1, 0.6), (2, 0.6)])
    # One neighbour: 0.6 * (1, 0, 0) + 0.4 * (1, 1, 0); an unknown item and an unknown user get 0.
    assert one == pytest.approx([1.0, 0.4, 0.0, 0.0, 0.0])
    assert two == pytest.approx([0.8, 0.2, 0.2, 0.0, 0.0])
