"""A replay gives the published table again, bit for bit, also what memory could not bear at once; else it says so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession, functions as F

from gesr_core.daily import pinning
from gesr_core.errors import ConfigurationError, GesrError, InputError
from gesr_core.io.tables import read_table
from gesr_core.names import Role
from gesr_core.runtime.worker import ScoreShards
from jobs import replay, score_daily, status
from tests.faulty import Faulty
from tests.toy import DS, Toy, toy_candidates, toy_overrides, write_rows, write_toy_checkpoint

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy.build(spark_session, tmp_path_factory.mktemp("toy"))


def run_of(spark: SparkSession, toy: Toy, target: str) -> str:
    rows = read_table(spark, toy.config.table(Role.SCORES, target=target)).where(F.col("ds") == DS)
    return str(rows.select("run_id").distinct().collect()[0][0])


def rows_of(spark: SparkSession, toy: Toy, target: str) -> list[Any]:
    return sorted(read_table(spark, toy.config.table(Role.SCORES, target=target)).collect())


def options(toy: Toy, *words: str) -> list[str]:
    return [*words, *(word for override in toy_overrides(toy.root) for word in ("--set", override))]


def test_a_replay_is_the_same_table_whatever_has_changed_since(toy: Toy, spark: SparkSession) -> None:
    score_daily.main(toy.args(target="scores_first"))
    run_id = run_of(spark, toy, "scores_first")
    # Other candidates, a newer checkpoint, another configuration: nothing of it is what the run read.
    table = DeltaTable.forPath(spark, toy.config.table(Role.CANDIDATES).location)
    write_rows(spark, toy.config, Role.CANDIDATES, [(DS, 3, [(2, "own", 0.5)])])
    table.delete("user_id = 5")
    write_toy_checkpoint(toy.config, seed=2)
    toy.export_items()
    replay.main([*options(toy, run_id), "--set", "scoring.top_k=3", "--set", "scoring.shards=2"])
    assert rows_of(spark, toy, "scores_replay") == rows_of(spark, toy, "scores_first")
    table.restoreToVersion(1)


def test_a_replay_repeats_the_halvings(toy: Toy, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring_task = pinning.scoring_task

    def short_of_memory(*args: Any, **kwargs: Any) -> ScoreShards:
        return Faulty(**vars(scoring_task(*args, **kwargs)), fault="out_of_memory", folder="")

    with monkeypatch.context() as patched:
        patched.setattr(pinning, "scoring_task", short_of_memory)
        score_daily.main(toy.args("scoring.batch_pairs=64", target="scores_halved"))
    ledger = read_table(spark, toy.config.table(Role.LEDGER)).where(
        "target = 'scores_halved' and kind = 'run_published'"
    )
    [published] = ledger.collect()
    assert json.loads(published["details"])["work"]["halved"]
    replay.main([*options(toy, run_of(spark, toy, "scores_halved")), "--to", "scores_halved_again"])
    assert rows_of(spark, toy, "scores_halved_again") == rows_of(spark, toy, "scores_halved")


def test_another_table_than_was_published_is_said(
    toy: Toy, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_daily.main(toy.args(target="scores_other"))
    scoring_task = pinning.scoring_task

    def wrong(*args: Any, **kwargs: Any) -> ScoreShards:
        task = scoring_task(*args, **kwargs)
        return Faulty(**vars(task), fault="wrong_score", folder="")

    monkeypatch.setattr(pinning, "scoring_task", wrong)
    with pytest.raises(GesrError, match="is another table: scores_wrong has 24 users"):
        replay.main([*options(toy, run_of(spark, toy, "scores_other")), "--to", "scores_wrong"])


def test_what_cannot_be_replayed_is_said(toy: Toy, spark: SparkSession) -> None:
    with pytest.raises(InputError, match="the ledger knows no run 'nobody'"):
        replay.main(options(toy, "nobody"))
    score_daily.main(toy.args(target="scores_there"))
    run_id = run_of(spark, toy, "scores_there")
    for published in ("scores_there", "scores_first"):
        with pytest.raises(ConfigurationError, match="is a table that score_daily publishes to"):
            replay.main([*options(toy, run_id), "--to", published])


def test_status_tells_what_stands_and_how_far_each_run_came(
    toy: Toy, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    score_daily.main(toy.args(target="scores_status"))
    run_id = run_of(spark, toy, "scores_status")
    for words in (["--ds", DS], ["--run", run_id]):
        capsys.readouterr()
        status.main([*options(toy), *words, "--target", "scores_status"])
        told = capsys.readouterr().out
        assert f"ds {DS} of scores_status: generation 1 of run {run_id} stands\n" in told
        assert "6 of 6 accepted, 6 of them scored by this run" in told
        assert "gate        passed" in told
        assert "as generation 1\n" in told
    status.main([*options(toy), "--ds", "2024-03-09"])
    assert "not published\n  the ledger knows no run of it" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="give --ds or --run"):
        status.main(options(toy))


def test_toy_has_the_users_that_the_message_counts() -> None:
    assert len({user for _, user, _ in toy_candidates()}) == 24
