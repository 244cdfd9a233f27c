"""The report of a toy day: what a run left is on the page, before and after the day is evaluated."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from pyspark.sql import SparkSession, functions as F

pytest.importorskip("matplotlib", reason="the petastorm set draws nothing")

from gesr_core.errors import ConfigurationError, InputError
from gesr_core.io.tables import read_table, table_version
from gesr_core.names import Role
from gesr_core.schema import UNKNOWN_ITEM
from jobs import evaluate, report, score_daily
from tests.toy import DS, ITEMS, USERS, Toy, toy_candidates, toy_config, user_text, write_rows

pytestmark = pytest.mark.spark

# Candidates beyond the catalogue are quarantined, and so are repeated ones.
CANDIDATES = [
    (ds, user, [*pairs, (ITEMS + 1, "own", 0.1), (pairs[0][0], "again", 0.1)]) for ds, user, pairs in toy_candidates()
]


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy day that is published, with ids that are texts."""
    world = Toy.build(
        spark_session, tmp_path_factory.mktemp("toy"), candidates=CANDIDATES, string_ids=True,
        overrides=["evaluation.ks=[2, 5]"],
    )  # fmt: skip
    score_daily.main(world.args())
    return world


def copied(toy: Toy, root: Path) -> Toy:
    """The same world elsewhere: a Delta table is a folder like any other."""
    shutil.copytree(toy.root, root)
    return Toy(root, toy_config(root, *toy.overrides), toy.overrides)


def written(toy: Toy, out: Path, *words: str, target: str = "scores") -> str:
    report.main([*toy.args(target=target), "--out", str(out), *words])
    return out.read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    assert found is not None
    return " ".join(re.sub(r"<[^>]*>", " ", found.group(1)).split())


def test_a_day_that_is_not_evaluated_has_a_page_that_says_so(
    toy: Toy, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(toy.args())
    [file] = (toy.root / "reports").iterdir()
    assert file.name == f"scores_{DS}.html"
    assert capsys.readouterr().out.strip().endswith(f"report: {file}")
    page = file.read_text(encoding="utf-8")
    [run_id] = {row["run_id"] for row in read_table(spark, toy.config.table(Role.SCORES)).select("run_id").collect()}
    assert f"Generation 1, run <code>{run_id}</code>" in page
    version = table_version(spark, toy.config.table(Role.CANDIDATES))
    assert f"candidates {version} {USERS} " in section(page, "run")
    assert "6 shards, one by one" in section(page, "shards")
    assert section(page, "gate").count(" ok") == 10
    assert "not evaluated yet" in section(page, "metrics")
    quarantined = read_table(spark, toy.config.table(Role.QUARANTINE)).where(F.col("run_id") == run_id)
    unknown = quarantined.where(F.col("reason") == UNKNOWN_ITEM)
    users = unknown.select("user_id").distinct().count()
    assert f"candidates {UNKNOWN_ITEM} {unknown.count()} {users}" in section(page, "quarantine")
    assert page.count("<figure ") == 3


def test_ten_users_stand_there_with_what_they_bought_first(toy: Toy, spark: SparkSession, tmp_path: Path) -> None:
    page = written(toy, tmp_path / "page.html")
    shown = re.findall(r"<summary>(u\d+) <span>(\d+) bought, (\d+) of them published; (\d+) events, (\d+)", page)
    assert len(shown) == 10
    window = (F.col("event_ts") >= F.lit(f"{DS} 00:00:00")) & (F.col("event_ts") < F.lit("2024-03-17 00:00:00"))
    events = read_table(spark, toy.config.table(Role.EVENTS))
    bought: dict[str, set[str]] = {}
    for row in events.where(window).select("user_id", "item_id").collect():
        bought.setdefault(row["user_id"], set()).add(row["item_id"])
    assert len(bought) >= 10
    retrieved = {user_text(user): len(pairs) for _, user, pairs in CANDIDATES}
    scores = read_table(spark, toy.config.table(Role.SCORES)).where(F.col("ds") == DS)
    ranked = {row["user_id"]: [pair["item_id"] for pair in row["ranked"]] for row in scores.collect()}
    kept = read_table(spark, toy.config.table(Role.HISTORIES))
    histories = {row["user_id"]: row["history"] for row in kept.collect()}
    for user, purchases, published, history, candidates in shown:
        assert int(purchases) == len(bought[user])
        assert int(published) == len(bought[user] & set(ranked[user]))
        assert int(history) == len(histories.get(user, []))
        assert int(candidates) == retrieved[user]
    # The same users in the same order, whenever it is written.
    assert re.findall(r"<summary>(u\d+) ", written(toy, tmp_path / "again.html")) == [user for user, *_ in shown]
    assert re.search(r"age_group [ABC] · pin_code (115|unknown)", section(page, "users"))
    first = ranked[shown[0][0]]
    places = [section(page, "users").index(f" {rank} {item} ") for rank, item in enumerate(first, start=1)]
    assert places == sorted(places)


def test_an_evaluated_day_shows_its_metrics_and_publications_side_by_side(
    toy: Toy, spark: SparkSession, tmp_path: Path
) -> None:
    evaluated = copied(toy, tmp_path / "toy")
    evaluate.main(evaluated.args())
    config = evaluated.config
    metrics = read_table(spark, config.table(Role.METRICS))
    [run_id] = {row["run_id"] for row in read_table(spark, config.table(Role.SCORES)).select("run_id").collect()}
    # What other measures will write, by the names that are agreed.
    write_rows(
        spark, config, Role.METRICS,
        [
            (DS, run_id, "model", "ndcg", 2, "history_length:1-9", 0.4321, 0.4, 0.45, 9),
            (DS, run_id, "model", "calibration_predicted", 1, "all", 0.1, None, None, 50),
            (DS, run_id, "model", "calibration_observed", 1, "all", 0.2, 0.1, 0.3, 50),
            (DS, "rival", "model", "ndcg", 2, "all", 0.9876, 0.9, 1.0, 9),
            (DS, "rival", f"against:{run_id}", "ndcg_difference", 2, "all", 0.1234, 0.1, 0.2, 9),
        ],
    )  # fmt: skip
    page = written(evaluated, tmp_path / "page.html")
    text = section(page, "metrics")
    row = metrics.where(
        (F.col("run_id") == run_id) & (F.col("metric") == "ndcg") & (F.col("k") == 2)
        & (F.col("ordering") == "model") & (F.col("segment") == "all")
    ).collect()[0]  # fmt: skip
    assert f"{row['value']:.4f} {row['ci_low']:.4f} to {row['ci_high']:.4f}" in text
    assert "0.4321 0.4000 to 0.4500" in text
    assert {"figure-orderings", "figure-segments", "figure-calibration", "figure-runs"} <= set(
        re.findall(r"figure-\w+", page)
    )
    beside = section(page, "runs")
    assert "gesr in scores (" in beside
    assert "rival 0.9876 0.9000 to 1.0000" in beside
    assert f"rival gesr in scores ({run_id[:6]}) all 0.1234 0.1000 to 0.2000" in beside
    assert "rival not in the ledger" in beside
    assert f"{run_id} (this page)" in beside


def test_what_a_vacuum_took_is_said_and_the_rest_is_shown(toy: Toy, tmp_path: Path) -> None:
    bare = copied(toy, tmp_path / "toy")
    for file in (bare.root / "histories").rglob("*.parquet"):
        if "_delta_log" not in file.parts:
            file.unlink()
    text = section(written(bare, tmp_path / "page.html"), "users")
    assert "Histories and candidates are not shown: files of the versions that the run read were removed" in text
    assert "rank item score" in text


def test_a_day_that_is_not_published_is_refused_with_what_to_do(toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(InputError, match=rf"holds nothing for ds 2024-03-11; its newest: {DS}; run jobs/score_daily"):
        report.main([*toy.args(ds="2024-03-11"), "--out", str(out)])
    with pytest.raises(InputError, match=r"holds nothing for ds .*; its newest: none; .* --target scores_other"):
        report.main([*toy.args(target="scores_other"), "--out", str(out)])
    assert not out.exists()


def test_without_a_folder_or_a_plain_target_it_is_refused_before_spark_starts(toy: Toy) -> None:
    with pytest.raises(ConfigurationError, match=r"set storage\.reports, or give --out FILE"):
        report.main(toy.args("storage.reports=null"))
    with pytest.raises(ConfigurationError, match="is not a plain name"):
        report.main(toy.args(target="../scores"))
