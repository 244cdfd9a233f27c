"""Goals and rows from finished cells that are made up here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import ml_100k, ta_feng
from benchmarks.quality.goals import Goal, judge
from benchmarks.quality.measures import ALL, Measured, Sums, measure
from benchmarks.quality.report import RIVALS, Comparisons, Data, rows, table
from benchmarks.quality.store import Result
from tests.benchmarks.quality.sets import a_test_set

USERS = 60
DS = ("2001-02-08", "2001-02-15")
PAIRS = [(user, item, int(item == 2)) for user in range(USERS) for item in (1, 2, 3)]
SET = a_test_set(PAIRS, [(user, 2) for user in range(USERS)])


def measured(share: float, *, sharp: float = 1.0, seed: int = 0) -> Measured:
    """An ordering that puts the positive first for a share of the users, with logits as sharp as given."""
    rng = np.random.default_rng(seed)
    first_U = rng.random(USERS) < share
    score = np.array([[0.0, 1.0 if first else -1.0, 0.5] for first in first_U]).ravel() * sharp
    found = measure(SET, score, logit_P=score)
    # The positive is the window's most bought item: what is left without it is made to look the same.
    return replace(found, sums=dict.fromkeys(found.sums, found.sums[ALL]), auc=dict.fromkeys(found.auc, 0.5))


def result(*shares: float, facts: Mapping[str, Any] | None = None, sharp: float = 1.0) -> Result:
    """A finished cell from one share per ds."""
    found = {ds: measured(share, seed=n, sharp=sharp) for n, (ds, share) in enumerate(zip(DS, shares, strict=True))}
    sums: dict[str, Mapping[str, Sums]] = {ds: one.sums for ds, one in found.items()}
    return Result({ds: {"bought": one.values()} for ds, one in found.items()}, sums, dict(facts or {}))


def comparisons(cells: Mapping[str, list[Result]], *, name: str = ta_feng.NAME, **facts: object) -> Comparisons:
    """What is compared, of the made-up set."""
    return Comparisons.of(Data(name, cells, dict.fromkeys(DS, SET.user_U), facts))


def goal_named(goals: list[Goal], start: str) -> Goal:
    """The first goal whose name begins so."""
    return next(goal for goal in goals if goal.name.startswith(start))


WORSE = {rival: [result(0.1, 0.1)] for rival in RIVALS}


def test_ahead_of_every_rival_is_decided_by_the_nearest_one_outside_the_interval() -> None:
    cells = {**WORSE, "sasrec": [result(0.1, 0.6)], "two_tower": [result(0.3, 0.3)], "gesr": [result(0.95, 0.95)]}
    goal = goal_named(judge({ta_feng.NAME: comparisons(cells)}), "gesr ahead of every rival")
    assert goal.met
    assert goal.note == "decided by sasrec on 2001-02-15"
    near = {**cells, "sasrec": [result(0.1, 0.93)]}
    goal = goal_named(judge({ta_feng.NAME: comparisons(near)}), "gesr ahead of every rival")
    assert not goal.met
    assert goal.value is not None
    assert goal.value <= 0


def test_a_rival_without_a_result_leaves_the_goal_unmet_and_is_named() -> None:
    cells = {**WORSE, "two_tower": [result(0.3, 0.3)], "gesr": [result(0.95, 0.95)]}
    del cells["ease"]
    goal = goal_named(judge({ta_feng.NAME: comparisons(cells)}), "gesr ahead of every rival")
    assert (goal.met, "no result of ['ease']" in goal.note) == (False, True)


def test_nothing_counts_beside_a_two_tower_that_is_behind_popularity() -> None:
    cells = {**WORSE, "popularity_28d": [result(0.5, 0.5)], "two_tower": [result(0.6, 0.3)], "gesr": [result(0.9, 0.9)]}
    goals = judge({ta_feng.NAME: comparisons(cells)})
    assert not goal_named(goals, "two_tower ahead of popularity").met
    lower_ne = goal_named(goals, "gesr's NE below")
    assert (lower_ne.met, lower_ne.note) == (False, "two_tower is a straw man: this does not count")


def test_the_least_gain_in_ne_over_the_ds_counts() -> None:
    cells = {**WORSE, "two_tower": [result(0.5, 0.5)], "gesr": [result(0.95, 0.5)]}
    goal = goal_named(judge({ta_feng.NAME: comparisons(cells)}), "gesr's NE below")
    assert goal.value == pytest.approx(0.0)
    assert not goal.met


def test_cells_that_are_not_built_stay_in_the_list_as_not_met() -> None:
    goals = judge({ta_feng.NAME: comparisons({**WORSE, "two_tower": [result(0.5, 0.5)]})})
    assert {goal.met for goal in goals if "tarq" in goal.name or "codes" in goal.name} == {False}
    assert goal_named(goals, "tarq keeps").note.startswith("not built")


def test_the_gain_that_tarq_keeps_is_judged_only_where_its_teacher_has_one() -> None:
    cells = {"tarq_backbone": [result(0.3, 0.5)], "tarq_teacher": [result(0.9, 0.5)], "tarq": [result(0.9, 0.1)]}
    goal = goal_named(judge({ta_feng.NAME: comparisons(cells)}), "tarq keeps")
    assert goal.value == pytest.approx(1.0)
    assert goal.note == "1 of 2 ds judged"
    cells["tarq_teacher"] = [result(0.3, 0.5)]
    assert goal_named(judge({ta_feng.NAME: comparisons(cells)}), "tarq keeps").met is None


def test_the_level_with_fewest_codes_decides() -> None:
    facts = {"ds": {ds: {"codes": 64, "codes_used": [64, 60]} for ds in DS}}
    cells = {"tarq_alignment": [result(0.5, 0.5, facts=facts)]}
    goal = goal_named(judge({ta_feng.NAME: comparisons(cells)}), "codes of the codebook")
    assert (goal.value, goal.met) == (60 / 64, False)


def test_ratings_with_too_few_users_are_not_judged() -> None:
    cells = {"two_tower": [result(0.1, 0.1)], "gesr": [result(0.9, 0.9)]}
    for users, met in ((ml_100k.MIN_USERS, True), (ml_100k.MIN_USERS - 1, None)):
        facts = {f"test_users_{ds}": users for ds in DS}
        goals = judge({ml_100k.NAME: comparisons(cells, name=ml_100k.NAME, **facts)})
        assert [goal.met for goal in goals] == [met, met]


def test_rows_show_the_spread_of_seeds_and_differences_to_baseline_and_strongest_rival() -> None:
    cells = {
        **WORSE,
        "sasrec": [result(0.8, 0.8)],
        "two_tower": [result(0.3, 0.3)],
        "gesr": [result(0.9, 0.9), result(0.7, 0.7)],
    }
    c = comparisons(cells)
    assert c.data.strongest_rival == "sasrec"
    row = next(row for row in rows(c) if (row["cell"], row["ds"], row["segment"]) == ("gesr", DS[0], ALL))
    ndcg = row["measures"]["ndcg"]
    assert row["seeds"] == 2
    assert ndcg["low"] < ndcg["mean"] < ndcg["high"]
    assert row["against_two_tower"]["ndcg"]["low"] > 0
    assert set(row["against_sasrec"]) == {"ndcg", "recall", "gauc", "ne"}


def test_the_table_names_what_has_no_result() -> None:
    text = table(comparisons({"two_tower": [result(0.3, 0.3)]}).data, {"tarq": "not built: no such section"})
    assert "two_tower" in text
    assert "tarq: not built: no such section" in text
