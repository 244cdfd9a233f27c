"""A refusal of the gate, end to end: the same answer again at once, overruled on record, or beside an earlier day."""

from __future__ import annotations

import json
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession, functions as F

from gesr_core.errors import ConfigurationError, GateRefused
from gesr_core.io.tables import read_table
from gesr_core.names import Role
from gesr_core.sink import gate
from gesr_core.sink.ledger import LedgerRow, read_ledger
from jobs import score_daily, update_histories
from tests.toy import DS, Toy, toy_candidates, write_rows, write_toy_checkpoint

pytestmark = pytest.mark.spark

NEXT_DS = "2024-03-11"
# Every twentieth candidate is none of the catalogue's.
SPOILT = [
    (ds, user, [(item if (user + item) % 20 else 900 + item, *rest) for item, *rest in retrieved])
    for ds, user, retrieved in toy_candidates()
]
STRICT = ("gate.max_unknown_share=0.001",)


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy.build(spark_session, tmp_path_factory.mktemp("toy"), candidates=SPOILT)


def ledger(spark: SparkSession, toy: Toy, target: str, *kinds: str, ds: str = DS) -> list[LedgerRow]:
    rows = read_ledger(spark, toy.config.table(Role.LEDGER), job="score_daily", ds=ds, target=target)
    return [row for row in rows if row.kind in kinds]


def published(spark: SparkSession, toy: Toy, target: str) -> dict[Any, Any]:
    rows = read_table(spark, toy.config.table(Role.SCORES, target=target)).where(F.col("ds") == DS).collect()
    return {row["user_id"]: row["ranked"] for row in rows}


def test_a_retry_of_what_was_refused_ends_at_once_with_the_same_answer(toy: Toy, spark: SparkSession) -> None:
    answers = []
    for _ in range(2):
        with pytest.raises(GateRefused, match=r"items does not know is .*, bound 0\.001 .*--accept") as refusal:
            score_daily.main(toy.args(*STRICT, target="scores_again"))
        answers.append(str(refusal.value))
    assert answers[0] == answers[1]
    # The second start opened no run, scored nothing and recorded nothing.
    assert len(ledger(spark, toy, "scores_again", "run_opened")) == 1
    assert len(ledger(spark, toy, "scores_again", "gate_refused")) == 1
    assert len(ledger(spark, toy, "scores_again", "shard_accepted")) == toy.config.scoring.shards


def test_a_person_overrules_a_check_on_record_and_nothing_is_scored_again(
    toy: Toy, spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(GateRefused, match="does not know"):
        score_daily.main(toy.args(*STRICT, target="scores_overruled"))
    # Another check than the one that refused is no help.
    with pytest.raises(GateRefused, match="does not know"):
        score_daily.main([*toy.args(*STRICT, target="scores_overruled"), "--accept", "max_abs_score"])
    score_daily.main([*toy.args(*STRICT, target="scores_overruled"), "--accept", "max_unknown_share"])
    assert "overruled by --accept max_unknown_share: share of candidates" in caplog.text
    score_daily.main(toy.args(target="scores_lenient"))
    assert published(spark, toy, "scores_overruled") == published(spark, toy, "scores_lenient")
    accepted = ledger(spark, toy, "scores_overruled", "shard_accepted")
    assert len(accepted) == toy.config.scoring.shards
    [passed] = ledger(spark, toy, "scores_overruled", "gate_passed")
    overruled = [check["key"] for check in passed.details["checks"] if check["accepted"]]
    assert overruled == ["max_unknown_share"]
    # The publication itself says so too.
    history = DeltaTable.forPath(spark, toy.config.table(Role.SCORES, target="scores_overruled").location).history()
    [text] = [row["userMetadata"] for row in history.where("userMetadata is not null").collect()]
    assert [check["key"] for check in json.loads(text)["gate"]["checks"] if check["accepted"]] == ["max_unknown_share"]
    # It stands: another start has nothing to do, with the bound as it was or raised.
    for overrides in (STRICT, ()):
        score_daily.main(toy.args(*overrides, target="scores_overruled"))
    assert len(ledger(spark, toy, "scores_overruled", "run_published")) == 1


def test_a_raised_bound_publishes_what_is_staged(toy: Toy, spark: SparkSession) -> None:
    with pytest.raises(GateRefused, match="does not know"):
        score_daily.main(toy.args(*STRICT, target="scores_raised"))
    score_daily.main(toy.args("gate.max_unknown_share=0.4", target="scores_raised"))
    assert len(ledger(spark, toy, "scores_raised", "shard_accepted")) == toy.config.scoring.shards
    assert len(published(spark, toy, "scores_raised")) > 0


def test_a_refused_replacement_is_taken_over_as_well(toy: Toy, spark: SparkSession) -> None:
    score_daily.main(toy.args(target="scores_twice"))
    with pytest.raises(GateRefused, match="does not know"):
        score_daily.main(toy.args(*STRICT, target="scores_twice", replace=True))
    score_daily.main([*toy.args(*STRICT, target="scores_twice", replace=True), "--accept", "max_unknown_share"])
    # Scored once for each of the two publications.
    assert len(ledger(spark, toy, "scores_twice", "shard_accepted")) == 2 * toy.config.scoring.shards
    assert [row.generation for row in ledger(spark, toy, "scores_twice", "run_published")] == [1, 2]


def test_an_input_whose_owner_keeps_versions_for_less_than_replays_are_promised_is_warned_of(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    score_daily.main(toy.args(target="scores_warned"))
    # The toy writes users as a person would, and candidates as our jobs do.
    [line] = [record.message for record in caplog.records if "keeps old versions" in record.message]
    assert line.startswith("users (")
    assert "keeps old versions for 7 days" in line


def test_a_check_that_there_is_not_is_named(toy: Toy) -> None:
    with pytest.raises(ConfigurationError, match="invalid choice: 'everything'"):
        score_daily.main([*toy.args(target="scores_never"), "--accept", "everything"])


def test_scores_that_moved_since_the_ds_before_are_refused_and_a_new_model_is_not_refused_for_being_one(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "LEAST_PAIRS", 10)
    toy = Toy.build(spark, tmp_path_factory.mktemp("moved"))
    score_daily.main(toy.args())
    [first] = ledger(spark, toy, "scores", "gate_passed")
    [check] = [check for check in first.details["checks"] if check["key"] == "max_score_psi"]
    assert (check["bound"], check["passed"]) == ("none: no earlier ds of this model version", True)

    # The day after, everybody's candidates are one item.
    update_histories.main(toy.args(ds=NEXT_DS, target=None))
    toy.export_items(ds=NEXT_DS)
    others = [(NEXT_DS, user, [(1, "own", 0.5)]) for _, user, _ in toy_candidates()]
    write_rows(spark, toy.config, Role.CANDIDATES, others)
    with pytest.raises(GateRefused, match=r"population stability index of the scores is .*--accept max_score_psi"):
        score_daily.main(toy.args(ds=NEXT_DS))
    score_daily.main([*toy.args(ds=NEXT_DS), "--accept", "max_score_psi"])
    [passed] = ledger(spark, toy, "scores", "gate_passed", ds=NEXT_DS)
    assert passed.details["basis"]["reference"]["ds"] == DS
    # Another target has no earlier ds: a challenger is not judged by the champion's scores.
    score_daily.main(toy.args(ds=NEXT_DS, target="scores_challenger"))
    # Nor is a model that is promoted judged by those of the one before.
    write_toy_checkpoint(toy.config, seed=9)
    toy.export_items(ds=NEXT_DS)
    first_day = read_table(spark, toy.config.table(Role.SCORES)).where(F.col("ds") == DS)
    before = sorted(map(repr, first_day.collect()))
    score_daily.main(toy.args(ds=NEXT_DS, replace=True))
    scores = read_table(spark, toy.config.table(Role.SCORES))
    assert sorted(map(repr, scores.where(F.col("ds") == DS).collect())) == before, "a replacement is of one ds alone"
    assert scores.where(F.col("ds") == NEXT_DS).select("generation").distinct().collect()[0][0] == 2
