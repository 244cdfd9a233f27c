"""Intervals of differences on users drawn again."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.bootstrap import RESAMPLES, difference, resampled
from benchmarks.quality.measures import ALL, Sums, measure
from tests.benchmarks.quality.sets import a_test_set


def sums_of(seed: int, *, hits: float = 0.5, users: int = 200) -> Sums:
    """Sums of requests with one positive of two candidates, which stands first with a probability."""
    rng = np.random.default_rng(seed)
    pairs = [(user, item, item % 2) for user in range(users) for item in (1, 2)]
    better = np.repeat(rng.random(users) < hits, 2)
    positive = np.tile([1.0, 0.0], users)
    return measure(
        a_test_set(pairs, [(user, 1) for user in range(users)]), np.where(better, positive, 1 - positive)
    ).sums[ALL]


def test_a_cell_beside_itself_differs_by_nothing_in_every_resample() -> None:
    sums = sums_of(1)
    drawn = resampled(np.arange(200), {"a": [sums], "b": [sums]})
    found = difference([0.7], [0.7], drawn["a"]["ndcg"], drawn["b"]["ndcg"])
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert len(drawn["a"]["ndcg"]) == RESAMPLES


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    sums = sums_of(2, users=400)
    drawn = resampled(np.arange(400), {"a": [sums]})["a"]["ndcg"]
    assert drawn.std() == pytest.approx(sums.ndcg_U.std() / 20, rel=0.1)
    assert drawn.mean() == pytest.approx(sums.ndcg_U.mean(), abs=0.005)


def test_requests_of_a_user_are_drawn_together() -> None:
    # 200 requests of ten users, all alike within a user: the spread is that of ten, not of 200.
    sums = sums_of(3)
    ndcg_U = np.repeat(np.arange(10) / 10, 20)
    alike = Sums(**{**vars(sums), "ndcg_U": ndcg_U})
    drawn = resampled(np.repeat(np.arange(10), 20), {"a": [alike]})["a"]["ndcg"]
    assert drawn.std() == pytest.approx(ndcg_U.std() / np.sqrt(10), rel=0.15)


def test_seeds_are_averaged_before_the_interval_is_taken() -> None:
    seeds = [sums_of(seed) for seed in (4, 5, 6)]
    together = resampled(np.arange(200), {"a": seeds})["a"]["ndcg"]
    alone = [resampled(np.arange(200), {"a": [one]})["a"]["ndcg"] for one in seeds]
    assert together == pytest.approx(np.mean(alone, axis=0))
