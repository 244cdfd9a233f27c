"""A published toy day measured from its tables, against values worked out by hand."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import Config
from gesr_core.errors import ConfigurationError, InputError
from gesr_core.io.tables import table_version
from gesr_core.names import Role
from gesr_core.schema import written_columns
from gesr_core.spark_settings import settings
from jobs import evaluate

pytestmark = pytest.mark.spark

DS = "2024-01-10"
OPTIONS = ["--ds", DS, "--set", "evaluation.ks=[1, 2, 9]", "--set", "evaluation.popularity_days=5"]
# Items 1 and 2 were popular in the five days before, in this order; item 3 only long ago.
PAST = [(9, 1, -1), (8, 1, -2), (9, 2, -5), (9, 3, -6), (8, 3, -6), (7, 3, -6)]
# In the label window of seven days: user 1 bought 2 and 5 (never retrieved), user 2 bought 2; a view and what comes
# at the window's end count for nothing.
BOUGHT = [(1, 2, 0), (1, 5, 6), (2, 2, 3), (3, 1, 7)]
CANDIDATES = {
    1: [(1, "a", 0.5), (2, "a", 0.1), (3, "b", 7.0)],
    2: [(1, "a", 0.5), (2, "b", 0.5), (3, "b", 0.1)],
    3: [(1, "a", 0.5), (2, "a", 0.4), (3, "a", 0.1)],
}
CATALOGUE = 10
# The model's best two of three: (item, score, logit).
RANKED = {1: [(2, 0.9, 2.0), (3, 0.2, -1.0)], 2: [(3, 0.8, 1.0), (2, 0.1, -2.0)], 3: [(1, 0.3, -3.0), (2, 0.2, -3.0)]}


@pytest.fixture
def published(spark: SparkSession, config: Config) -> None:
    """A day of three users with three candidates each, of which two are published."""
    events = [(user, item, _day(day), "buy", 1.0, DS) for user, item, day in PAST + BOUGHT]
    events.append((2, 3, _day(0), "view", 1.0, DS))
    _write(spark, config, Role.EVENTS, events)
    _write(spark, config, Role.CANDIDATES, [(DS, user, rows) for user, rows in CANDIDATES.items()])
    _publish(spark, config, RANKED, run_id="run-1")
    items = spark.createDataFrame([(item,) for item in range(1, CATALOGUE + 1)], "item_id bigint")
    items.coalesce(1).write.format("delta").save(config.table(Role.ITEMS).location)
    users = spark.createDataFrame([(1, "A"), (2, "B"), (3, None)], "user_id bigint, age_group string")
    users.coalesce(1).write.format("delta").save(config.table(Role.USERS).location)


@pytest.mark.usefixtures("published")
def test_metrics_of_a_published_day_are_those_by_hand(
    spark: SparkSession, config: Config, job_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([*job_args, *OPTIONS])
    got = _metrics(spark, config)
    second = 1 / math.log2(3)
    ideal = 1 + second
    expected = {
        # user 1: model 2 3, retrieval order 1 3 (2), popularity 1 2; user 2: model 3 2, retrieval 1 2, popularity 1 2
        ("model", "recall", 1): (1 / 2 + 0) / 2,
        ("model", "recall", 2): (1 / 2 + 1) / 2,
        ("model", "ndcg", 2): (1 / ideal + second) / 2,
        ("retrieval_order", "recall", 2): (0 + 1) / 2,
        ("retrieval_order", "ndcg", 2): (0 + second) / 2,
        ("popularity", "recall", 1): 0.0,
        ("popularity", "ndcg", 2): (second / ideal + second) / 2,
        ("popularity", "ndcg_of_retrieved", 2): (second + second) / 2,
        # Published pairs: 1-2 bought, 1-3, 2-3, 2-2 bought, 3-1, 3-2; model .9 .1 against .2 .8 .3 .2
        ("model", "auc", None): (4 + 0) / 8,
        ("model", "gauc", None): (2 * 1 + 2 * 0) / 4,
        # Popularity of the published pairs: 1 1 against 0 0 2 1 (distinct buyers in the five days before)
        ("popularity", "auc", None): (2 * (2 + 0.5)) / 8,
        # Retrieval places: 1-2 third, 2-2 second; 1-3 second, 2-3 third, 3-1 first, 3-2 second
        ("retrieval_order", "gauc", None): (2 * 0 + 2 * 1) / 4,
        ("model", "base_rate", None): 2 / 6,
    }
    of_all = {key[1:]: value for key, value in got.items() if key[0] == "all"}
    assert {key: of_all[key] for key in expected} == pytest.approx(expected)
    # The published K is 2: what stands ninth is not known.
    assert {k for _, _, metric, k in got if metric == "recall"} == {1, 2}
    assert {ordering for _, ordering, metric, _ in got if metric == "ne"} == {"model"}
    strange = {
        "spark.sql.session.timeZone": "Asia/Tokyo",
        "spark.sql.ansi.enabled": "false",
        "spark.sql.sources.partitionOverwriteMode": "dynamic",
    }
    with settings(spark, strange):
        evaluate.main([*job_args, *OPTIONS])
    assert _metrics(spark, config) == got, "measured again in a session set otherwise"
    printed = capsys.readouterr().out
    assert "without the window's most frequent positive item" in printed
    assert "NDCG and Recall over 2 users with a positive" in printed


@pytest.mark.usefixtures("published")
def test_segments_picks_drift_and_another_publication_stand_beside_one_another(
    spark: SparkSession, config: Config, job_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The late ranker took of user 1 what was published and what was not; of user 2 what was published.
    picks = spark.createDataFrame([(DS, 1, 2), (DS, 1, 1), (DS, 2, 2)], "ds string, user_id bigint, shown bigint")
    picks.coalesce(1).write.format("delta").save(str(tmp_path / "picks"))
    taken = f"evaluation.ranker_picks={{location: {tmp_path / 'picks'}, columns: {{item_id: shown}}}}"
    # A week before, the same pairs scored 10 higher; another model puts the pairs the other way round.
    higher = {user: [(item, score + 10, logit) for item, score, logit in best] for user, best in RANKED.items()}
    _publish(spark, config, higher, run_id="run-0", ds="2024-01-03")
    turned = {user: [(item, -score, -logit) for item, score, logit in best[::-1]] for user, best in RANKED.items()}
    _publish(spark, config, turned, run_id="run-2", target="scores_other")
    options = [*job_args, *OPTIONS, "--set", taken, "--set", "evaluation.segments.history_length=[1, 2]"]
    evaluate.main(options)
    got = _metrics(spark, config)
    expected = {
        ("all", "model", "ranker_survival", 2): 2 / 3,
        # Bought and retrieved were 1-2 and 2-2, both published.
        ("all", "model", "survival", 2): 1.0,
        ("all", "model", "survival_of_bought", 2): 2 / 3,
        ("source:a", "model", "survival", 2): 1.0,
        # Best of each: 2, 3 and 1; then 3, 2 and 2: of ten items.
        ("all", "model", "catalogue_coverage", 1): 3 / 10,
        ("user.age_group:A", "model", "recall", 1): 1 / 2,
        ("user.age_group:B", "model", "recall", 1): 0.0,
        # Only users 9, 8 and 7 had events before.
        ("history_length:0", "model", "recall", 2): (1 / 2 + 1) / 2,
        # Users 9 and 8 had item 1, 9 alone item 2, in the five days before; of item 3 nobody knew.
        ("all", "model", "novelty", 1): (1 + 1 + 0) / 3,
        ("against:2024-01-03", "model", "score_ks", None): 1.0,
    }
    assert {key: got[key] for key in expected} == pytest.approx(expected)
    assert got["against:2024-01-03", "model", "score_psi", None] > 1
    assert not [key for key in got if key[0] in ("history_length:1", "user.age_group:unknown") and key[2] == "recall"]

    evaluate.main([*options, "--against", "scores_other"])
    both = _metrics(spark, config)
    assert {key: both[key] for key in got} == got
    differences = {key[2:]: value for key, value in both.items() if key[:2] == ("all", "against:run-2")}
    assert differences["recall_difference", 1] == pytest.approx((1 / 2 + 0) / 2 - (0 + 1) / 2)
    assert differences["recall_difference", 2] == 0
    assert differences["mrr_difference", 2] == pytest.approx((1 + 1 / 2) / 2 - (1 / 2 + 1) / 2)
    version = table_version(spark, config.table(Role.METRICS))
    evaluate.main([*options, "--against", "scores_other"])
    assert table_version(spark, config.table(Role.METRICS)) == version
    printed = capsys.readouterr().out
    for text in ("scores against ds 2024-01-03", "history_length:0", "minus ds 2024-01-10, scores_other"):
        assert text in printed


def test_a_publication_is_not_compared_with_itself(job_args: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="--against scores is what is evaluated"):
        evaluate.main([*job_args, *OPTIONS, "--against", "scores"])
    with pytest.raises(ConfigurationError, match="'2024-1-3' is not a date"):
        evaluate.main([*job_args, *OPTIONS, "--against-ds", "2024-1-3"])


@pytest.mark.usefixtures("published")
def test_what_cannot_be_evaluated_is_said(job_args: list[str]) -> None:
    # One after the other, as the tables that they share take longer to write.
    for options, message in (
        (["--ds", "2024-01-09"], r"scores holds nothing for ds 2024-01-09: run jobs/score_daily.py --ds 2024-01-09"),
        (["--target", "scores_challenger"], r"scores_challenger: there is no Delta table at .*; did you mean 'scores'"),
        (
            ["--set", "labels.window_days=9"],
            r"label window of ds 2024-01-10 runs to 2024-01-18, but events has nothing",
        ),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main([*job_args, *OPTIONS, *options])


def _publish(
    spark: SparkSession, config: Config, ranked: dict[int, list[tuple[int, float, float]]], **where: str
) -> None:
    """Publish users' best, each (item, score, logit), to a target and ds."""
    target, ds = where.get("target", "scores"), where.get("ds", DS)
    rows = [
        (ds, user, [(item, rank, score, logit, 0.0) for rank, (item, score, logit) in enumerate(best, start=1)],
         1, "toy", where["run_id"])
        for user, best in ranked.items()
    ]  # fmt: skip
    columns = written_columns(Role.SCORES, tasks=[task.name for task in config.labels.tasks])
    df = spark.createDataFrame(rows, ", ".join(f"{name} {type_}" for name, type_ in columns.items()))
    df.coalesce(1).write.format("delta").mode("append").save(config.table(Role.SCORES, target=target).location)


def _day(days: int) -> dt.datetime:
    return dt.datetime(2024, 1, 10, tzinfo=dt.timezone.utc) + dt.timedelta(days=days)


def _write(spark: SparkSession, config: Config, role: Role, rows: Sequence[tuple[object, ...]]) -> None:
    columns = written_columns(role, tasks=[task.name for task in config.labels.tasks])
    df: DataFrame = spark.createDataFrame(rows, ", ".join(f"{name} {type_}" for name, type_ in columns.items()))
    df.coalesce(1).write.format("delta").save(config.table(role).location)


def _metrics(spark: SparkSession, config: Config) -> dict[tuple[str, str, str, int | None], float]:
    rows = spark.read.format("delta").load(config.table(Role.METRICS).location).collect()
    found = {(row["segment"], row["ordering"], row["metric"], row["k"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    assert {(row["ds"], row["run_id"]) for row in rows} == {(DS, "run-1")}
    return found
