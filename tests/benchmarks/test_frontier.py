"""Which points a rival makes needless, and which requests cost is measured on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from benchmarks.frontier.cost import request_rows, whole_requests
from benchmarks.frontier.points import Point, dominating, judge
from benchmarks.quality.measures import ALL, WITHOUT_TOP_ITEM
from benchmarks.quality.prepared import REQUEST_ID
from gesr_core.names import Col
from tests.benchmarks.quality.sets import a_test_set


def a_point(name: str, us: float, ndcg: float, ne: float | None = None, *, ours: bool = True) -> Point:
    values = {("ndcg", ALL): ndcg, ("ndcg", WITHOUT_TOP_ITEM): ndcg}
    return Point(name, ours, us, values if ne is None else {**values, ("ne", ALL): ne})


CHEAP = a_point("cheap", 1.0, 0.10, ours=False)
TWO_TOWER = a_point("two_tower", 2.0, 0.05, 0.9, ours=False)


def test_a_rival_dominates_what_costs_no_less_and_is_no_better() -> None:
    points = [CHEAP, TWO_TOWER, worse := a_point("worse", 5.0, 0.10, 0.8), better := a_point("better", 5.0, 0.11, 0.9)]
    assert dominating(worse, points, ("ndcg", ALL)) == ["cheap"]
    assert dominating(better, points, ("ndcg", ALL)) == []
    # A loss: lower is better, and a rival without one has no say.
    assert dominating(worse, points, ("ne", ALL)) == []
    assert dominating(better, points, ("ne", ALL)) == ["two_tower"]
    assert dominating(a_point("cheaper", 0.5, 0.01), points, ("ndcg", ALL)) == []


def test_the_goal_is_the_share_of_our_points_that_none_dominates() -> None:
    points = [CHEAP, TWO_TOWER, a_point("worse", 5.0, 0.09, 0.8), a_point("better", 5.0, 0.11, 0.8)]
    goals = {found["name"].partition(", ")[2]: found for found in judge(points)}
    assert goals[f"ndcg, {ALL}"]["value"] == 0.5
    assert goals[f"ndcg, {ALL}"]["note"] == "worse behind cheap"
    assert goals[f"ne, {ALL}"]["met"] is True
    assert goals[f"ne, {WITHOUT_TOP_ITEM}"]["met"] is None


def test_cost_is_measured_on_whole_lists() -> None:
    # The second request has no positive: its list is thinned.
    test = a_test_set(
        [(10, 1, 0), (10, 2, 1), (20, 1, 0), (30, 3, 1), (30, 4, 0), (40, 5, 1)], [(10, 2), (30, 3), (30, 9), (40, 5)]
    )
    rows = pa.table(
        {
            REQUEST_ID: [10, 20, 30, 40],
            Col.USER_ID: [10, 20, 30, 40],
            Col.CANDIDATE_ITEM_ID: [[1, 2], [1], [3, 4], [5]],
        }
    )
    found = whole_requests(replace(test, rows=rows), most=2)
    assert found.unit_U.tolist() == [10, 30]
    assert found.user_P.tolist() == [10, 10, 30, 30]
    assert found.item_P.tolist() == [1, 2, 3, 4]
    assert np.bincount(found.truth_unit).tolist() == [1, 2]
    served = request_rows(found.rows)
    assert served.column(Col.CANDIDATE_ITEM_ID).to_pylist() == [[1, 2], [3, 4]]
    assert served.column(Col.CANDIDATES_IN).to_pylist() == [2, 2]
    assert served.column(Col.REJECTED).to_pylist() == [[], []]
