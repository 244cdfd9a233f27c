"""Differences of two publications: paired, exactly 0 of the same one, and honest. No JVM."""

from __future__ import annotations

import numpy as np
import pytest

from gesr_core.metrics.values import COMPARED, differences
from tests.metric_rows import Pair, plan, summed, user_batch

USERS, ITEMS = 200, 12


def publication(rng: np.random.Generator, *, skill: float) -> dict[int, list[Pair]]:
    """Who bought what is the same for every skill; the better the skill, the higher it stands."""
    truth = np.random.default_rng(5).random((USERS, ITEMS)) < 0.15
    found = {}
    for user in range(USERS):
        score_I = skill * truth[user] + rng.normal(size=ITEMS)
        rank_I = (-score_I).argsort().argsort() + 1
        found[user] = [
            Pair(item, item + 1, int(rank_I[item]), float(score_I[item]), float(score_I[item]), bool(truth[user, item]))
            for item in range(ITEMS)
        ]
    return found


def test_a_publication_differs_from_itself_by_exactly_0() -> None:
    sums = summed(user_batch(publication(np.random.default_rng(1), skill=1.0)), plan(ks=(1, 5)))
    found = list(differences(sums, sums, ordering="against:run-2"))
    assert found
    assert {(m.value, m.ci_low, m.ci_high) for m in found} == {(0.0, 0.0, 0.0)}
    assert {m.ordering for m in found} == {"against:run-2"}
    # Nothing that is measured on pairs which the model chose.
    assert {m.metric.removesuffix("_difference") for m in found} <= COMPARED


def test_the_interval_is_that_of_the_users_own_differences() -> None:
    rng = np.random.default_rng(2)
    one, other = (publication(rng, skill=skill) for skill in (2.0, 0.5))
    of = plan(ks=(5,), replicates=1_000)
    sums, others = (summed(user_batch(users), of) for users in (one, other))
    [found] = [m for m in differences(sums, others, ordering="x") if m.metric == "mrr_difference"]

    def reciprocal(pairs: list[Pair]) -> float | None:
        bought = [p.rank for p in pairs if p.bought and p.rank is not None]
        return None if not bought else (1 / min(bought) if min(bought) <= 5 else 0.0)

    both = [(reciprocal(one[user]), reciprocal(other[user])) for user in range(USERS)]
    own = np.array([a - b for a, b in both if a is not None and b is not None])
    assert found.value == pytest.approx(own.mean())
    assert found.n == len(own)
    half = 1.96 * own.std(ddof=1) / np.sqrt(len(own))
    assert found.ci_low == pytest.approx(own.mean() - half, abs=0.2 * half)
    assert found.ci_high == pytest.approx(own.mean() + half, abs=0.2 * half)
    # Paired: far narrower than two intervals side by side would be.
    assert found.ci_low is not None
    assert found.ci_low > 0


def test_equal_models_are_rarely_told_apart() -> None:
    """Of 40 pairs of equal models, the interval leaves 0 out in at most 5; more than that has a chance below 2 %."""
    rng, outside = np.random.default_rng(3), 0
    of = plan(ks=(5,), replicates=200)
    for _ in range(40):
        sums, others = (summed(user_batch(publication(rng, skill=1.0)), of) for _ in range(2))
        [found] = [m for m in differences(sums, others, ordering="x") if m.metric == "ndcg_difference"]
        assert found.ci_low is not None
        assert found.ci_high is not None
        outside += found.ci_low > 0 or found.ci_high < 0
    assert outside <= 5


def test_only_segments_and_cuts_of_both_are_compared() -> None:
    users = publication(np.random.default_rng(1), skill=1.0)
    segments = {user: [user % 2] for user in users}
    one = summed(user_batch(users, segments=segments), plan(ks=(1, 5), user_segments=("user.a:x", "user.a:y")))
    other = summed(user_batch(users, segments=segments), plan(ks=(5,), user_segments=("user.a:x", "user.b:y")))
    found = list(differences(one, other, ordering="x"))
    assert {m.segment for m in found} == {"all", "user.a:x"}
    assert {m.k for m in found if m.metric == "ndcg_difference"} == {5}
