"""A challenger against the champion, from published tables and two checkpoints' manifests to the decision."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pyspark.sql import SparkSession

from gesr_core.config import Config
from gesr_core.errors import ConfigurationError, InputError
from gesr_core.evaluation.promotion import Trained, find_trained
from gesr_core.names import Role
from jobs import promote
from tests.toy import Toy, toy_config, write_plain, write_rows, write_toy_checkpoint

pytestmark = [pytest.mark.spark, pytest.mark.slow]

DS, EARLY_DS = "2024-01-22", "2024-01-21"
USERS, ITEMS = 40, 6
MEASURED = (
    "evaluation.ks=[1, 3]",
    "evaluation.promote_by=ndcg@3",
    "evaluation.segments={history_length: [], source: false, popularity: {}, user: []}",
    "evaluation.without_top_item=false",
)
# The last label window of both ends before DS.
TRAINED = {
    "training_set": {"ds": DS, "train_dates": ["2024-01-01", "2024-01-08"], "validation_date": "2024-01-15"},
    "configuration": {"labels": {"window_days": 7}},
}


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Every user buys item 1, which the challenger puts first and the champion third, for two days of scores."""
    root = tmp_path_factory.mktemp("promote")
    config = toy_config(root, *MEASURED)
    bought = [(u, 1, _day(day), "buy", 1.0, DS) for u in range(USERS) for day in (0, 6)]
    write_rows(spark_session, config, Role.EVENTS, bought)
    retrieved = [(item, "own", 1.0) for item in range(1, ITEMS + 1)]
    for ds in (DS, EARLY_DS):
        write_rows(spark_session, config, Role.CANDIDATES, [(ds, u, retrieved) for u in range(USERS)])
    write_plain(spark_session.createDataFrame([(i,) for i in range(ITEMS)], "item_id bigint"), config, Role.ITEMS)
    for target, seed, order in (("scores", 1, [2, 3, 1]), ("scores_challenger", 2, [1, 2, 3])):
        checkpoint = write_toy_checkpoint(config, seed=seed, inputs=TRAINED).name
        _publish(spark_session, config, target, order, checkpoint)
    return Toy(root, config, MEASURED)


def test_a_better_challenger_is_promoted_and_a_worse_one_is_not(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named: list[str] = []

    def move(config: Config, trained: Trained) -> str:
        named.append(trained.name)
        return "moved"

    monkeypatch.setattr(promote, "name_champion", move)
    promote.main(_args(toy, "--dry-run"))
    assert named == []
    printed = capsys.readouterr().out
    assert "promoted (dry run): ndcg@3 of all: +0.50000" in printed
    assert f"ds {DS} is after both" in printed
    promote.main(_args(toy))
    rival = find_trained(toy.config.folder("checkpoints"), _version(toy, "scores_challenger"))
    assert named == [rival.name]
    assert capsys.readouterr().out.splitlines()[-1].endswith("above 0; moved")
    promote.main(_args(toy, "--target", "scores_challenger", "--challenger", "scores"))
    assert named == [rival.name]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("kept: ndcg@3 of all: -0.50000")
    assert last.endswith("below 0")


def test_a_ds_that_training_may_have_seen_cannot_promote(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=rf"ds {EARLY_DS} is in-sample for .*; compare on a ds from {DS} on") as caught:
        promote.main(_args(toy, ds=EARLY_DS))
    assert caught.value.exit_code == 3
    assert capsys.readouterr().out.count("IN-SAMPLE") == 2


def test_what_cannot_be_decided_is_said(toy: Toy) -> None:
    with pytest.raises(InputError, match=r"there is no Delta table at .*scores_chalenger; did you mean"):
        promote.main(_args(toy, "--challenger", "scores_chalenger"))
    with pytest.raises(ConfigurationError, match="scores is the champion's table"):
        promote.main(_args(toy, "--challenger", "scores"))
    with pytest.raises(ConfigurationError, match=r"promote_by is 'ndcg@10', but evaluation.ks are"):
        promote.main(_args(toy, "--set", "evaluation.promote_by=ndcg@10"))


def _args(toy: Toy, *options: str, ds: str = DS) -> list[str]:
    return ["--ds", ds, *toy.settings(), *options]


def _version(toy: Toy, target: str) -> str:
    session = SparkSession.getActiveSession()
    assert session is not None
    row = session.read.format("delta").load(toy.config.table(Role.SCORES, target=target).location).first()
    return str(row["model_version"]) if row else ""


def _publish(spark: SparkSession, config: Config, target: str, order: list[int], checkpoint: str) -> None:
    ranked = [(item, rank, 1.0 / rank, 1.0 / rank, 0.0) for rank, item in enumerate(order, start=1)]
    rows: list[Any] = [
        (ds, u, ranked, 1, checkpoint, f"run of {target}") for ds in (DS, EARLY_DS) for u in range(USERS)
    ]
    columns = "ds string, user_id bigint, ranked array<struct<item_id:bigint,rank:int,score:float,"
    columns += (
        "logit_bought:float,logit_bought_high_spend:float>>, generation bigint, model_version string, run_id string"
    )
    df = spark.createDataFrame(rows, columns)
    df.coalesce(1).write.format("delta").save(config.table(Role.SCORES, target=target).location)


def _day(days: int) -> dt.datetime:
    return dt.datetime(2024, 1, 22, tzinfo=dt.timezone.utc) + dt.timedelta(days=days)
