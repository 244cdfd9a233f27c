"""The Poisson bootstrap: it draws what it says, the same everywhere, and its intervals hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gesr_core.metrics.bootstrap import draws, interval

USERS, REPLICATES = 400, 200


def hashes(rng: np.random.Generator, users: int) -> np.ndarray:
    return rng.integers(-(2**63), 2**63 - 1, users, dtype=np.int64)


def test_draws_are_poisson_with_mean_1_and_begin_with_the_data() -> None:
    drawn_UR = draws(hashes(np.random.default_rng(1), 5_000), replicates=100)
    assert drawn_UR.shape == (5_000, 101)
    assert (drawn_UR[:, 0] == 1).all()
    drawn = drawn_UR[:, 1:]
    for times in range(5):
        expected = math.exp(-1) / math.factorial(times)
        assert (drawn == times).mean() == pytest.approx(expected, abs=5 * math.sqrt(expected / drawn.size))
    # Neither users nor replicates know of one another.
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.06
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.4


def test_a_user_is_drawn_alike_whoever_stands_beside_them() -> None:
    known = hashes(np.random.default_rng(2), 10)
    together = draws(known, replicates=30)
    assert np.array_equal(together[3:5], draws(known[3:5], replicates=30))
    assert np.array_equal(together[:, :11], draws(known, replicates=10))


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(kind: str) -> None:
    """Over 400 samples of 400 users, a 95 % interval of 200 replicates holds the truth in 91 to 98 of 100."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(400):
        pairs_U = rng.geometric(0.3, USERS).astype(float)
        rate_U = rng.beta(2, 5, USERS)
        hits_U = rng.binomial(pairs_U.astype(int), rate_U).astype(float)
        below_U = np.ones(USERS) if kind == "mean" else pairs_U
        drawn_UR = draws(hashes(rng, USERS), replicates=REPLICATES)
        low, high = interval((hits_U @ drawn_UR) / (below_U @ drawn_UR), users=USERS)
        truth = 2 / 7 / 0.3 if kind == "mean" else 2 / 7
        assert low is not None
        assert high is not None
        held += low <= truth <= high
    assert 0.91 <= held / 400 <= 0.98


def test_the_interval_is_that_of_a_plain_bootstrap_of_the_same_data() -> None:
    rng = np.random.default_rng(9)
    value_U = rng.exponential(size=USERS)
    drawn_UR = draws(hashes(rng, USERS), replicates=2_000)
    low, high = interval((value_U @ drawn_UR) / drawn_UR.sum(axis=0), users=USERS)
    resampled = value_U[rng.integers(0, USERS, (2_000, USERS))].mean(axis=1)
    plain_low, plain_high = np.percentile(resampled, [2.5, 97.5])
    width = plain_high - plain_low
    assert low == pytest.approx(plain_low, abs=0.1 * width)
    assert high == pytest.approx(plain_high, abs=0.1 * width)


def test_replicates_that_drew_nobody_are_left_out_and_one_user_has_no_interval() -> None:
    values = np.array([0.5, np.nan, 0.4, 0.6, np.inf])
    assert interval(values, users=2) == pytest.approx((0.405, 0.595))
    assert interval(values, users=1) == (None, None)
    assert interval(np.array([0.5, np.nan]), users=5) == (None, None)
