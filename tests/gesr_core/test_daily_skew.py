"""Skew: a shard ten times the others, and a user with a million candidates."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pyspark.sql import SparkSession, functions as F

from gesr_core.daily import pinning
from gesr_core.daily.opening import open_run
from gesr_core.io.tables import read_table
from gesr_core.join.shards import balanced_parts, shard_of
from gesr_core.names import Role
from gesr_core.sink.ledger import read_ledger
from gesr_core.sink.tables import append, create_table
from gesr_core.sink.work import Work
from jobs import score_daily
from tests.toy import DS, ITEMS, Toy, toy_config, write_plain, write_rows

pytestmark = [pytest.mark.spark, pytest.mark.slow]

SHARDS, HEAVY, MANY = 6, 2, 1_000_000
# Sizes of real requests, not the toy's.
LARGE = ("scoring.max_candidates_per_request=2000", "scoring.candidate_buckets=[512, 2000]", "scoring.batch_pairs=4096")


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy world with a million items."""
    world = Toy.build(spark_session, tmp_path_factory.mktemp("toy"))
    item = F.col("id") + 1
    topics = F.array(F.concat(F.lit("topic "), (item % 5).cast("string")))
    columns = (
        item.alias("item_id"),
        F.concat(F.lit("class "), (item % 7).cast("string")).alias("product_subclass"),
        topics.alias("topics"),
        item.cast("double").alias("price"),
    )
    write_plain(spark_session.range(MANY).select(*columns), world.config, Role.ITEMS)
    world.export_items()
    return world


def ranked(spark: SparkSession, toy: Toy, target: str) -> dict[int, list[Any]]:
    rows = read_table(spark, toy.config.table(Role.SCORES, target=target)).where(F.col("ds") == DS).collect()
    return {row["user_id"]: [tuple(pair) for pair in row["ranked"]] for row in rows}


def other_candidates(toy: Toy, name: str) -> str:
    """The setting that reads candidates from a table of another name."""
    return f"tables.candidates.location={toy.root}/{name}"


def skewed_users(spark: SparkSession) -> list[int]:
    """Forty users of one shard and four of each other."""
    users: dict[int, list[int]] = {}
    for row in spark.range(1_000).select("id", shard_of("id", shards=SHARDS).alias("shard")).collect():
        users.setdefault(row["shard"], []).append(row["id"])
    return [user for shard in range(SHARDS) for user in users[shard][: 40 if shard == HEAVY else 4]]


def test_a_shard_ten_times_the_others_is_cut_and_scored_as_if_it_were_not(
    toy: Toy, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    skewed = other_candidates(toy, "skewed")
    rows = [(DS, user, [(1 + (user + n) % ITEMS, "own", 0.5) for n in range(12)]) for user in skewed_users(spark)]
    write_rows(spark, toy_config(toy.root, skewed), Role.CANDIDATES, rows)
    score_daily.main(toy.args(skewed, target="scores_uncut"))

    monkeypatch.setattr(pinning, "balanced_parts", partial(balanced_parts, least=10))
    args = score_daily._parser().parse_args(toy.args(skewed, target="scores_cut"))
    run = open_run(spark, toy_config(toy.root, skewed), args)
    assert run.run.pins.parts == {HEAVY: 4}
    assert "shard 2 holds 4.0 times the mean pairs of a shard: cut into 4 parts" in caplog.text
    assert next(run.waves()) == [0, 1]
    attempt_id = run.stage([1, HEAVY])
    staged = run.day.staging().where(F.col("attempt_id") == attempt_id).where("stats is not null")
    pairs = {(r["shard"], r["stats"]["part"]): r["stats"]["pairs"] for r in staged.collect()}
    assert set(pairs) == {(1, 0), *((HEAVY, part) for part in range(4))}
    assert max(pairs.values()) < 0.6 * 40 * 12
    run.accept([1, HEAVY], attempt_id)
    # Another start, which would cut nothing by itself, goes on with the same parts.
    monkeypatch.setattr(pinning, "balanced_parts", balanced_parts)
    score_daily.main(toy.args(skewed, target="scores_cut"))
    cut, uncut = ranked(spark, toy, "scores_cut"), ranked(spark, toy, "scores_uncut")
    assert set(cut) == set(uncut)
    for user, best in uncut.items():
        assert [p[2] for p in cut[user]] == pytest.approx([p[2] for p in best], rel=5e-5, abs=5e-5)
    ledger = read_ledger(spark, toy.config.table(Role.LEDGER), job="score_daily", ds=DS, target="scores_cut")
    [published] = [row for row in ledger if row.kind == "run_published"]
    assert published.counts["users"] == len(rows)
    assert published.details["pins"]["parts"] == [[HEAVY, 4]]


def test_a_user_with_a_million_candidates_is_scored_as_many_requests(toy: Toy, spark: SparkSession) -> None:
    long_lists = other_candidates(toy, "long")
    config = toy_config(toy.root, long_lists)
    create_table(spark, config.table(Role.CANDIDATES), {"ds": "string", "user_id": "bigint", "candidates": _CANDIDATES})
    last = F.when(F.col("id") == 1, MANY).otherwise(9)
    items = F.transform(F.sequence(F.lit(1), last), _candidate)
    columns = (F.lit(DS).alias("ds"), F.col("id").alias("user_id"), items.alias("candidates"))
    append(spark.range(3).select(*columns), config.table(Role.CANDIDATES))
    for target, most in (("scores_long", 2_000), ("scores_longer", 40_000)):
        sizes = (*LARGE, f"scoring.max_candidates_per_request={most}")
        score_daily.main(toy.args(long_lists, *sizes, target=target))
    cut, longer = ranked(spark, toy, "scores_long"), ranked(spark, toy, "scores_longer")
    assert set(cut) == {0, 1, 2}
    assert [p[2] for p in cut[1]] == pytest.approx([p[2] for p in longer[1]], rel=5e-5, abs=5e-5)
    ledger = read_ledger(spark, toy.config.table(Role.LEDGER), job="score_daily", ds=DS, target="scores_long")
    [published] = [row for row in ledger if row.kind == "run_published"]
    work = Work.from_json(published.details["work"])
    assert (work.pairs, work.requests) == (MANY + 2 * 9, MANY // 2_000 + 2)


_CANDIDATES = "array<struct<item_id:bigint,source:string,retrieval_score:double>>"


def _candidate(item: Any) -> Any:
    fields = {"item_id": item.cast("bigint"), "source": F.lit("own"), "retrieval_score": F.lit(0.5)}
    return F.struct(*(column.alias(name) for name, column in fields.items()))
