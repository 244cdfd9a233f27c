"""What the gate counts, what it refuses, and what a person may overrule."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pyspark.sql import SparkSession

from gesr_core.config import GateConfig
from gesr_core.sink.gate import (
    LEAST_PAIRS,
    CandidateCounts,
    StagedCounts,
    check_gate,
    checks_from_json,
    count_staged,
    overrule,
    refused,
)
from gesr_core.sink.score_distribution import BINS_PER_UNIT, ScoreDistribution, population_stability

BOUNDS = GateConfig(
    max_quarantined_share=0.2,
    max_abs_score=100.0,
    max_unknown_share=0.1,
    max_empty_history_share=0.5,
    max_score_psi=0.25,
)  # fmt: skip
GOOD = StagedCounts(
    users=4,
    users_hash=5,
    users_scored=2,
    users_without_history=2,
    candidates_in=10,
    candidates_scored=9,
    candidates_rejected=1,
    unknown_items=1,
    ranked=9,
    ranked_hash=7,
    scores_not_finite=0,
    largest_score=7.0,
)
FLAT = ScoreDistribution.of(dict.fromkeys(range(20), LEAST_PAIRS))
MOVED = ScoreDistribution.of({place + 9: LEAST_PAIRS for place in range(20)})


def failing(
    staged: StagedCounts = GOOD, *, reference: ScoreDistribution | None = None, scores: ScoreDistribution = FLAT
) -> list[str]:
    candidates = CandidateCounts(users=4, users_hash=5, candidates=10)
    checks = check_gate(staged, candidates, scores=scores, reference=reference, bounds=BOUNDS)
    assert all(check.remedy for check in checks if not check.passed)
    return [check.key or check.name for check in refused(checks)]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"users": 3, "users_without_history": 1}, ["users missing or doubled"]),
        ({"users_hash": 6}, ["users missing or doubled"]),
        ({"candidates_scored": 8}, ["candidates neither scored nor quarantined"]),
        ({"candidates_in": 11, "candidates_scored": 10}, ["candidates lost on the way in"]),
        ({"scores_not_finite": 1}, ["scores that are not finite"]),
        ({"largest_score": float("nan")}, ["max_abs_score"]),
        ({"largest_score": 1e9}, ["max_abs_score"]),
        ({"candidates_scored": 6, "candidates_rejected": 4}, ["max_quarantined_share"]),
        ({"unknown_items": 2}, ["max_unknown_share"]),
        ({"users_without_history": 3}, ["max_empty_history_share"]),
        ({"users_scored": 0}, ["users with scores"]),
    ],
)
def test_the_gate_names_what_is_out_of_bounds(changes: dict[str, Any], names: list[str]) -> None:
    assert failing(replace(GOOD, **changes)) == names


def test_scores_that_moved_are_refused_only_beside_an_earlier_ds_of_the_same_model() -> None:
    assert failing(scores=MOVED) == []
    assert failing(scores=MOVED, reference=FLAT) == ["max_score_psi"]
    assert failing(scores=FLAT, reference=FLAT) == []
    # Chance alone moves so few.
    few = ScoreDistribution.of({100: LEAST_PAIRS - 1})
    assert failing(scores=few, reference=FLAT) == []


def test_a_person_may_overrule_a_bound_but_not_what_would_be_a_defect() -> None:
    staged = replace(GOOD, users_hash=6, unknown_items=9)
    candidates = CandidateCounts(users=4, users_hash=5, candidates=10)
    checks = check_gate(staged, candidates, scores=FLAT, reference=None, bounds=BOUNDS)
    left = refused(overrule(checks, {"max_unknown_share", "max_abs_score", "users missing or doubled"}))
    assert [check.name for check in left] == ["users missing or doubled"]
    accepted = [check.key for check in overrule(checks, {"max_unknown_share", "max_abs_score"}) if check.accepted]
    # What is within its bound is not on record as overruled.
    assert accepted == ["max_unknown_share"]
    assert "--accept max_unknown_share" in next(c.explained for c in checks if c.key == "max_unknown_share")
    assert "--accept" not in next(c.explained for c in checks if c.key is None and not c.passed)


def test_checks_survive_the_ledger() -> None:
    candidates = CandidateCounts(users=4, users_hash=5, candidates=10)
    checks = check_gate(GOOD, candidates, scores=FLAT, reference=FLAT, bounds=BOUNDS)
    assert checks_from_json(json.loads(json.dumps([vars(check) for check in checks]))) == checks


@pytest.mark.spark
def test_one_pass_counts_what_a_loop_over_the_rows_does(spark: SparkSession) -> None:
    rng = random.Random(4)
    rows: list[tuple[Any, ...]] = []
    for user in [*range(40), None]:
        scores = [rng.choice([rng.gauss(0, 2), 1e9, -3.0]) for _ in range(rng.choice([0, 1, 3]))]
        if user == 7:
            scores = [math.nan, math.inf, 1.0]
        ranked = [(item, item + 1, score, score) for item, score in enumerate(scores)]
        reasons = rng.choices(["unknown_item", "duplicate_candidate", "no_candidates"], k=rng.choice([0, 2]))
        rejected = [(9, reason) for reason in reasons]
        rows.append((user, ranked, rejected, 5, len(ranked), rng.choice([0, 3])))
    schema = (
        "user_id bigint, ranked array<struct<item_id:bigint,rank:int,score:float,logit_bought:float>>, "
        "rejected array<struct<item_id:bigint,reason:string>>, candidates_in bigint, candidates_scored bigint, "
        "history_events bigint"
    )
    counts, found = count_staged(spark.createDataFrame(rows, schema).repartition(3), tasks=["bought"])
    reasons = [reason for _, _, rejected, *_ in rows for _, reason in rejected]
    pairs = [score for _, ranked, *_ in rows for _, _, score, _ in ranked]
    expected = {
        "users": len(rows),
        "users_scored": sum(bool(ranked) for _, ranked, *_ in rows),
        "users_without_history": sum(row[-1] == 0 for row in rows),
        "candidates_in": 5 * len(rows),
        "candidates_scored": len(pairs),
        "candidates_rejected": sum(reason != "no_candidates" for reason in reasons),
        "unknown_items": reasons.count("unknown_item"),
        "ranked": len(pairs),
        "scores_not_finite": sum(not math.isfinite(score) for score in pairs),
    }
    assert {name: getattr(counts, name) for name in expected} == expected
    assert math.isnan(counts.largest_score)
    assert found.pairs == expected["ranked"] - expected["scores_not_finite"]
    # Another order of rows and files has the same hashes; another ranking has not.
    again, _ = count_staged(spark.createDataFrame(rows[::-1], schema).repartition(2), tasks=["bought"])
    assert (again.users_hash, again.ranked_hash) == (counts.users_hash, counts.ranked_hash)
    rows[3] = (rows[3][0], [(8, 1, 0.5, 0.5)], *rows[3][2:])
    other, _ = count_staged(spark.createDataFrame(rows, schema), tasks=["bought"])
    assert (other.users_hash, other.ranked_hash != counts.ranked_hash) == (counts.users_hash, True)


@pytest.mark.spark
def test_nothing_staged_counts_as_nothing(spark: SparkSession) -> None:
    schema = (
        "user_id bigint, ranked array<struct<item_id:bigint,rank:int,score:float>>, "
        "rejected array<struct<item_id:bigint,reason:string>>, candidates_in bigint, candidates_scored bigint, "
        "history_events bigint"
    )
    counts, scores = count_staged(spark.createDataFrame([], schema), tasks=[])
    assert (counts.users, counts.ranked_hash, counts.largest_score, scores.pairs) == (0, 0, 0.0, 0)


counted = st.dictionaries(st.integers(-500, 500), st.integers(1, 10_000), min_size=1, max_size=60)


@given(counted)
def test_a_distribution_has_not_moved_from_itself_also_out_of_the_ledger(counts: dict[int, int]) -> None:
    found = ScoreDistribution.of(counts)
    kept = ScoreDistribution.from_json(json.loads(json.dumps(found.to_json())))
    assert population_stability(found, found) == 0.0
    assert kept.edges == found.edges
    assert population_stability(kept, found) == pytest.approx(0.0, abs=1e-6)
    assert found.edges == tuple(sorted(set(found.edges)))
    assert len(found.edges) < 10
    assert sum(found.shares(found.edges)) == pytest.approx(1.0)


@given(counted, counted)
def test_the_index_is_never_negative_and_takes_bins_from_the_reference(
    before: dict[int, int], after: dict[int, int]
) -> None:
    reference, found = ScoreDistribution.of(before), ScoreDistribution.of(after)
    kept = ScoreDistribution.from_json(reference.to_json())
    assert population_stability(reference, found) >= 0.0
    assert population_stability(kept, found) == pytest.approx(population_stability(reference, found), abs=1e-3)


def test_many_places_are_parted_into_ten_bins_of_equal_counts() -> None:
    found = ScoreDistribution.of(dict.fromkeys(range(1000), 7))
    assert found.edges == tuple(range(100, 1_000, 100))
    assert found.to_json()["edges"][0] == 100 / BINS_PER_UNIT


def test_scores_that_all_were_one_number_and_are_another_have_moved() -> None:
    assert population_stability(ScoreDistribution.of({5: 9_000}), ScoreDistribution.of({6: 9_000})) > 1.0
