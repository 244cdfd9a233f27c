"""Values on random data equal those of torchmetrics, scikit-learn and scipy. No JVM.

torchmetrics computes in float32, and its retrieval metrics know scores above 0 alone: ours are shifted for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gesr_core.evaluation.drift import kolmogorov_smirnov
from gesr_core.metrics.bootstrap import draws
from gesr_core.metrics.ranking import ORDERINGS
from gesr_core.metrics.user_sums import Users
from gesr_core.metrics.values import metrics_of
from gesr_core.sink.score_distribution import BINS_PER_UNIT
from tests.metric_rows import Pair, measured, plan, summed, user_batch, values_of

torchmetrics = pytest.importorskip("torchmetrics")
sklearn_metrics = pytest.importorskip("sklearn.metrics")
sklearn_calibration = pytest.importorskip("sklearn.calibration")
stats = pytest.importorskip("scipy.stats")

USERS, ITEMS, KS = 60, 25, (1, 5, 10)
FLOAT32, FLOAT64 = 2e-6, 1e-12


class World:
    """Random scores of every user's items, all of them published, and who bought what; everybody bought something."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.logit_UI = rng.normal(-1, 1.5, (USERS, ITEMS))
        p = 1 / (1 + np.exp(-self.logit_UI))
        self.bought_UI = rng.random((USERS, ITEMS)) < 0.6 * p
        self.bought_UI[np.arange(USERS), rng.integers(0, ITEMS, USERS)] = True
        self.user_UI = np.repeat(np.arange(USERS)[:, None], ITEMS, axis=1)

    def batch(self) -> Any:
        rank_UI = (-self.logit_UI).argsort(axis=1).argsort(axis=1) + 1
        return user_batch(
            {
                user: [
                    Pair(
                        item, item + 1, int(rank_UI[user, item]), float(self.logit_UI[user, item]),
                        float(self.logit_UI[user, item]), bool(self.bought_UI[user, item]),
                    )
                    for item in range(ITEMS)
                ]
                for user in range(USERS)
            }
        )  # fmt: skip


@pytest.fixture(params=[1, 2, 3])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def ours(world: World, **changes: Any) -> dict[Any, float]:
    return values_of(measured(world.batch(), plan(ks=KS, published_k=ITEMS, replicates=20, **changes)))


def test_recall_ndcg_and_mrr_are_those_of_torchmetrics(world: World, record_property: Any) -> None:
    values = ours(world)
    flat = [
        torch.tensor(a.ravel()) for a in (world.logit_UI - world.logit_UI.min() + 1, world.bought_UI, world.user_UI)
    ]
    theirs = {}
    for k in KS:
        for name, metric in (
            ("recall", torchmetrics.retrieval.RetrievalRecall),
            ("ndcg", torchmetrics.retrieval.RetrievalNormalizedDCG),
            ("mrr", torchmetrics.retrieval.RetrievalMRR),
        ):
            theirs[name, k] = float(metric(top_k=k)(flat[0], flat[1], indexes=flat[2]))
    assert {key: values[key] for key in theirs} == pytest.approx(theirs, abs=FLOAT32)
    record_property("largest_difference", max(abs(values[key] - theirs[key]) for key in theirs))


def test_ndcg_is_that_of_scikit_learn(world: World) -> None:
    values = ours(world)
    for k in KS:
        assert values["ndcg", k] == pytest.approx(
            sklearn_metrics.ndcg_score(world.bought_UI, world.logit_UI, k=k), abs=FLOAT64
        )


def test_gauc_is_the_weighted_mean_of_scikit_learns_auc(world: World) -> None:
    both = [user for user in range(USERS) if 0 < world.bought_UI[user].mean() < 1]
    theirs = np.mean([sklearn_metrics.roc_auc_score(world.bought_UI[u], world.logit_UI[u]) for u in both])
    assert ours(world)["gauc", None] == pytest.approx(theirs, abs=FLOAT64)


def test_ne_is_scikit_learns_log_loss_over_that_of_the_base_rate(world: World) -> None:
    label, p = world.bought_UI.ravel(), 1 / (1 + np.exp(-world.logit_UI.ravel()))
    base = np.full(len(label), label.mean())
    theirs = sklearn_metrics.log_loss(label, p) / sklearn_metrics.log_loss(label, base)
    assert ours(world)["ne", None] == pytest.approx(theirs, abs=FLOAT64)


def test_calibration_error_in_bins_of_equal_width_is_that_of_torchmetrics(world: World) -> None:
    # The bins of equal counts that evaluate uses are its own; of the same bins both say the same.
    inner = np.linspace(0, 1, 11)[1:-1]
    values = ours(world, calibration_edges=tuple(np.log(inner / (1 - inner))))
    p = torch.tensor(1 / (1 + np.exp(-world.logit_UI.ravel())))
    label = torch.tensor(world.bought_UI.ravel().astype(int))
    theirs = torchmetrics.functional.classification.binary_calibration_error(p, label, n_bins=10, norm="l1")
    assert values["calibration_error", None] == pytest.approx(float(theirs), abs=FLOAT32)


def test_the_calibration_curve_is_that_of_scikit_learn(world: World) -> None:
    p = 1 / (1 + np.exp(-world.logit_UI.ravel()))
    edges = np.quantile(p, np.linspace(0, 1, 11))[1:-1]
    values = ours(world, calibration_edges=tuple(np.log(edges / (1 - edges))))
    observed, predicted = sklearn_calibration.calibration_curve(
        world.bought_UI.ravel(), p, n_bins=10, strategy="quantile"
    )
    assert [values["calibration_predicted", b] for b in range(1, 11)] == pytest.approx(list(predicted), abs=1e-9)
    assert [values["calibration_observed", b] for b in range(1, 11)] == pytest.approx(list(observed), abs=1e-9)


def test_the_interval_of_auc_is_that_of_scikit_learn_on_the_same_draws(world: World) -> None:
    batch = world.batch()
    # What evaluate takes: 32 bins of about equal counts.
    edges = tuple(np.quantile(world.logit_UI, np.arange(1, 32) / 32))
    of = plan(ks=KS, published_k=ITEMS, replicates=200, auc_edges=dict.fromkeys(ORDERINGS, edges))
    label, score = world.bought_UI.ravel(), world.logit_UI.ravel()
    exact = sklearn_metrics.roc_auc_score(label, score)
    [auc] = [m for m in metrics_of(summed(batch, of), {("all", "model"): (exact, len(label))}) if m.metric == "auc"]
    drawn_UR = draws(Users.of(batch).hash_U, replicates=200)
    theirs = [
        sklearn_metrics.roc_auc_score(label, score, sample_weight=np.repeat(drawn_UR[:, r], ITEMS))
        for r in range(1, 201)
    ]
    low, high = np.percentile(theirs, [2.5, 97.5])
    assert auc.value == exact
    assert auc.ci_low == pytest.approx(low, abs=0.05 * (high - low))
    assert auc.ci_high == pytest.approx(high, abs=0.05 * (high - low))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kolmogorov_smirnov_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grids = [np.floor(rng.normal(shift, 1, size) * BINS_PER_UNIT) for shift, size in ((0.0, 900), (0.2, 700))]
    counts = [dict(zip(*(a.tolist() for a in np.unique(grid, return_counts=True)), strict=True)) for grid in grids]
    assert kolmogorov_smirnov(*counts) == pytest.approx(stats.ks_2samp(*grids).statistic, abs=FLOAT64)
    assert kolmogorov_smirnov(counts[0], counts[0]) == 0
