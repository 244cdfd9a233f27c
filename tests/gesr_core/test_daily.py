"""score_daily end to end on a toy day, in one session: what is published, what is refused, what changes nothing."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from delta.tables import DeltaTable
from pyspark.sql import SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.daily.opening import open_run
from gesr_core.errors import AnotherRunWon, ConfigurationError, GateRefused, InputError
from gesr_core.io.tables import read_table, table_version
from gesr_core.names import Role
from gesr_core.sink.ledger import read_ledger
from gesr_core.sink.staging import clear_staging
from gesr_core.sink.work import Work
from gesr_core.spark_settings import settings
from jobs import replay, score_daily
from tests.toy import DS, ITEMS, USERS, Toy, toy_candidates, write_plain, write_rows

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy world whose day is published to `scores` once; tests publish to targets of their own."""
    world = Toy.build(spark_session, tmp_path_factory.mktemp("toy"))
    score_daily.main(world.args())
    return world


def ranked(spark: SparkSession, config: Config, target: str = "scores") -> dict[Any, list[Any]]:
    rows = read_table(spark, config.table(Role.SCORES, target=target)).where(F.col("ds") == DS).collect()
    return {row["user_id"]: [tuple(pair) for pair in row["ranked"]] for row in rows}


def test_scores_read_back_by_another_engine_hold_every_user_of_candidates(toy: Toy) -> None:
    deltalake = pytest.importorskip("deltalake")
    table = deltalake.DeltaTable(toy.config.table(Role.SCORES).location).to_pyarrow_table().to_pylist()
    retrieved = {user: {item for item, _, _ in candidates} for _, user, candidates in toy_candidates()}
    assert {row["user_id"] for row in table} == set(retrieved)
    for row in table:
        pairs = row["ranked"]
        assert [pair["rank"] for pair in pairs] == list(range(1, min(5, len(retrieved[row["user_id"]])) + 1))
        assert {pair["item_id"] for pair in pairs} <= retrieved[row["user_id"]]
        scores = [pair["score"] for pair in pairs]
        assert scores == sorted(scores, reverse=True)
        assert all(abs(score) < 100 for score in scores)


@pytest.mark.petastorm
def test_the_publishing_commit_carries_the_manifest(toy: Toy, spark: SparkSession) -> None:
    history = DeltaTable.forPath(spark, toy.config.table(Role.SCORES).location).history()
    commits = [json.loads(row["userMetadata"]) for row in history.where("userMetadata is not null").collect()]
    [manifest] = [commit for commit in commits if commit["ds"] == DS]
    assert manifest["generation"] == 1
    assert set(manifest["pins"]["inputs"]) == {"candidates", "histories", "users"}
    assert manifest["plan"]["top_k"] == 5
    assert manifest["pins"]["made_by"]["versions"]["pyspark"]
    assert manifest["configuration"]["scoring"]["top_k"] == 5


def test_the_ledger_says_what_scoring_took(toy: Toy, spark: SparkSession) -> None:
    rows = read_ledger(spark, toy.config.table(Role.LEDGER), job="score_daily", ds=DS, target="scores")
    [published] = [row for row in rows if row.kind == "run_published"]
    work = Work.from_json(published.details["work"])
    assert work.pairs == sum(len({item for item, _, _ in pairs if item}) for _, _, pairs in toy_candidates())
    assert work.requests > USERS  # some users have more candidates than a request holds
    assert work.padded_pairs > work.pairs
    assert work.devices == ("cpu",)
    assert min(work.decode_s, work.compute_s, work.encode_s) > 0
    assert work.loads >= 1
    assert not work.halved
    accepted = [row for row in rows if row.kind == "shard_accepted"]
    together = Work.together(Work.from_json(row.details["work"]) for row in accepted)
    assert (together.windows, together.requests, together.pairs) == (work.windows, work.requests, work.pairs)


def test_rerun_of_a_published_ds_changes_nothing_also_after_appends_and_compaction(
    toy: Toy, spark: SparkSession
) -> None:
    before = table_version(spark, toy.config.table(Role.SCORES))
    other_day = [("2024-03-11", user, [(1, "own", 0.5)]) for user in range(3)]
    write_rows(spark, toy.config, Role.CANDIDATES, other_day)
    # Nobody asks for candidates of this user.
    columns = "user_id bigint, age_group string, pin_code string, likes array<bigint>"
    new_user = spark.createDataFrame([(999, "A", "115", None)], columns)
    new_user.write.format("delta").mode("append").save(toy.config.table(Role.USERS).location)
    DeltaTable.forPath(spark, toy.config.table(Role.CANDIDATES).location).optimize().executeCompaction()
    score_daily.main(toy.args())
    assert table_version(spark, toy.config.table(Role.SCORES)) == before


@pytest.mark.petastorm
def test_the_udf_transport_gives_the_same_bits(toy: Toy, spark: SparkSession) -> None:
    score_daily.main(toy.args("scoring.transport=pandas_udf", target="scores_udf"))
    assert ranked(spark, toy.config, "scores_udf") == ranked(spark, toy.config)


def test_a_form_is_tried_beside_fp32_before_it_scores_and_recorded(
    toy: Toy, spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings_of = ("scoring.precision=bf16", "scoring.least_overlap=0.5")
    score_daily.main(toy.args(*settings_of, target="scores_bf16"))
    assert "scoring in bf16" in caplog.text
    ledger = read_ledger(spark, toy.config.table(Role.LEDGER), job="score_daily", ds=DS, target="scores_bf16")
    [opened] = [row for row in ledger if row.kind == "run_opened"]
    form = opened.details["pins"]["form"]
    assert (form["precision"], form["compiled"]) == ("bf16", "off")
    assert [trial["precision"] for trial in form["trials"]] == ["fp32", "bf16"]
    assert form["trials"][1]["score_difference"] > 0
    exact, rounded = ranked(spark, toy.config), ranked(spark, toy.config, "scores_bf16")
    assert exact != rounded
    for user, pairs in exact.items():
        assert [p[2] for p in rounded[user]] == pytest.approx([p[2] for p in pairs], abs=0.05)
    # A published ds is judged by what it was scored from, and nothing is tried again.
    caplog.clear()
    score_daily.main(toy.args(*settings_of, target="scores_bf16"))
    assert "nothing to do" in caplog.text
    assert "trying" not in caplog.text
    with pytest.raises(ConfigurationError, match=r"fp8: cannot be run here: .*only newer GPUs"):
        score_daily.main(toy.args("scoring.precision=fp8", target="scores_never"))
    assert not Path(toy.config.table(Role.SCORES, target="scores_never").location).exists()


def test_a_profiled_run_leaves_traces_and_changes_no_bit(toy: Toy, spark: SparkSession, tmp_path: Path) -> None:
    score_daily.main([*toy.args(target="scores_traced"), "--profile", str(tmp_path / "traces")])
    traces = list((tmp_path / "traces").glob("shard-*.json.gz"))
    assert len(traces) == toy.config.scoring.shards
    with gzip.open(traces[0], "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"decode", "compute", "encode", "aten::addmm"} <= names
    assert ranked(spark, toy.config, "scores_traced") == ranked(spark, toy.config)


def test_session_settings_change_no_bit_and_are_put_back(toy: Toy, spark: SparkSession) -> None:
    odd = {
        "spark.sql.session.timeZone": "Asia/Tokyo",
        "spark.sql.ansi.enabled": "false",
        "spark.sql.sources.partitionOverwriteMode": "dynamic",
    }
    with settings(spark, odd):
        score_daily.main(toy.args(target="scores_tokyo"))
        assert {key: spark.conf.get(key) for key in odd} == odd
    assert ranked(spark, toy.config, "scores_tokyo") == ranked(spark, toy.config)


def test_shards_batches_and_cuts_of_requests_change_scores_by_rounding_alone(toy: Toy, spark: SparkSession) -> None:
    score_daily.main(toy.args("scoring.batch_pairs=8", "scoring.max_candidates_per_request=100", target="scores_whole"))
    cut, whole = ranked(spark, toy.config), ranked(spark, toy.config, "scores_whole")
    assert set(cut) == set(whole)
    for user, pairs in cut.items():
        assert [p[2] for p in pairs] == pytest.approx([p[2] for p in whole[user]], rel=5e-5, abs=5e-5)


def test_bad_candidates_are_quarantined_with_their_reason_and_pairs_add_up(spark: SparkSession, tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [
        (DS, 1, [(3, "own", 0.1), (3, "popular", 0.2), (None, "own", 0.1), (999, "als", 0.3), (4, "own", 0.4)]),
        (DS, 2, []),
        (DS, None, [(5, "own", 0.1)]),
        (DS, 777, [(6, "own", 0.1)]),  # neither a history nor a row in users
    ]
    world = Toy.build(spark, tmp_path, candidates=rows)
    score_daily.main(world.args("gate.max_quarantined_share=0.9"))
    assert {user: {p[0] for p in pairs} for user, pairs in ranked(spark, world.config).items()} == {1: {3, 4}, 777: {6}}
    quarantined = (
        read_table(spark, world.config.table(Role.QUARANTINE)).select("user_id", "item_id", "reason").collect()
    )
    assert Counter((r["user_id"], r["item_id"], r["reason"]) for r in quarantined if r["user_id"]) == {
        ("1", "3", "duplicate_candidate"): 1,
        ("1", "999", "unknown_item"): 1,
        ("1", None, "null_item_id"): 1,
        ("2", None, "no_candidates"): 1,
    }
    assert [(r["item_id"], r["reason"]) for r in quarantined if not r["user_id"]] == [("5", "null_user_id")]
    with pytest.raises(
        GateRefused, match=r"share of candidates quarantined is 0\.571429, bound 0\.01 .*mend the input"
    ):
        score_daily.main(world.args("gate.max_quarantined_share=0.01", target="scores_strict"))
    assert ranked(spark, world.config, "scores_strict") == {}


def test_what_the_gate_refused_is_scored_from_the_mended_input_by_the_next_start(
    spark: SparkSession, tmp_path: Path
) -> None:
    world = Toy.build(spark, tmp_path, candidates=[(DS, 1, [(3, "own", 0.1), (999, "als", 0.3)])])
    strict = world.args("gate.max_quarantined_share=0.1")
    for _ in range(2):
        with pytest.raises(GateRefused, match=r"share of candidates quarantined is 0\.5"):
            score_daily.main(strict)
    DeltaTable.forPath(spark, world.config.table(Role.CANDIDATES).location).delete("user_id = 1")
    write_rows(spark, world.config, Role.CANDIDATES, [(DS, 1, [(3, "own", 0.1), (4, "als", 0.3)])])
    score_daily.main(strict)
    assert {pair[0] for pair in ranked(spark, world.config)[1]} == {3, 4}
    # The second start read what the first had read, and took over its shards.
    ledger = read_table(spark, world.config.table(Role.LEDGER)).where("kind = 'shard_accepted'")
    assert ledger.select("run_id").distinct().count() == 2


def test_string_ids_give_the_same_scores(toy: Toy, spark: SparkSession, tmp_path: Path) -> None:
    world = Toy.build(spark, tmp_path, string_ids=True)
    score_daily.main(world.args())
    texts, numbers = ranked(spark, world.config), ranked(spark, toy.config)
    assert set(texts) == {f"u{user:03d}" for user in numbers}
    for user, pairs in numbers.items():
        of_text = texts[f"u{user:03d}"]
        assert [p[0] for p in of_text] == [f"i{p[0]:03d}" for p in pairs]
        assert [p[2] for p in of_text] == pytest.approx([p[2] for p in pairs], rel=5e-5, abs=5e-5)


def test_changed_candidates_are_refused_by_name_and_replaced_on_demand(spark: SparkSession, tmp_path: Path) -> None:
    world = Toy.build(spark, tmp_path)
    score_daily.main(world.args())
    table = DeltaTable.forPath(spark, world.config.table(Role.CANDIDATES).location)
    table.delete("user_id = 3")
    with pytest.raises(InputError, match=r"published already .* differs since: candidates .*--replace"):
        score_daily.main(world.args())
    with pytest.raises(InputError, match="configuration"):
        score_daily.main(world.args("scoring.top_k=4"))
    score_daily.main(world.args(replace=True))
    assert set(ranked(spark, world.config)) == set(range(USERS)) - {3}
    generations = read_table(spark, world.config.table(Role.SCORES)).select("generation").distinct().collect()
    assert [row["generation"] for row in generations] == [2]


def test_what_the_gate_judged_is_published_whatever_happens_to_staging_meanwhile(toy: Toy, spark: SparkSession) -> None:
    args = score_daily._parser().parse_args(toy.args(target="scores_cleared"))
    run = open_run(spark, toy.config, args)
    for shards in run.waves():
        run.accept(shards, run.stage(shards))
    manifest = run.pass_gate()
    # As a run of the same work would that published first.
    clear_staging(spark, toy.config.table(Role.STAGING), work_id=run.run.work_id)
    run.publish(manifest)
    assert ranked(spark, toy.config, "scores_cleared") == ranked(spark, toy.config)


def test_the_slower_of_two_runs_of_the_same_work_learns_that_another_won(toy: Toy, spark: SparkSession) -> None:
    args = score_daily._parser().parse_args(toy.args(target="scores_slower"))
    slower = open_run(spark, toy.config, args)
    waves = slower.waves()
    last = next(waves)
    attempt = slower.stage(last)
    score_daily.main(toy.args(target="scores_slower"))
    # All shards are accepted by now, and the rows of those that the other scored are cleared away.
    slower.accept(last, attempt)
    assert next(waves, None) is None
    with pytest.raises(AnotherRunWon, match="holds run"):
        slower.pass_gate()


def test_a_ds_that_was_deleted_from_its_target_can_be_published_again(spark: SparkSession, tmp_path: Path) -> None:
    world = Toy.build(spark, tmp_path)
    score_daily.main(world.args())
    before = ranked(spark, world.config)
    DeltaTable.forPath(spark, world.config.table(Role.SCORES).location).delete(f"ds = '{DS}'")
    score_daily.main(world.args())
    assert ranked(spark, world.config) == before
    generations = read_table(spark, world.config.table(Role.SCORES)).select("generation").distinct().collect()
    assert [row["generation"] for row in generations] == [2]


def test_work_whose_staged_rows_are_gone_is_done_again(toy: Toy, spark: SparkSession) -> None:
    args = score_daily._parser().parse_args(toy.args(target="scores_cleaned"))
    run = open_run(spark, toy.config, args)
    shards = next(run.waves())
    run.accept(shards, run.stage(shards))
    DeltaTable.forPath(spark, toy.config.table(Role.STAGING).location).delete(f"work_id = '{run.run.work_id}'")
    score_daily.main(toy.args(target="scores_cleaned"))
    assert ranked(spark, toy.config, "scores_cleaned") == ranked(spark, toy.config)


def test_a_run_whose_inputs_were_made_anew_is_not_resumed(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = Toy.build(spark, tmp_path)
    run = open_run(spark, world.config, score_daily._parser().parse_args(world.args()))
    shards = next(run.waves())
    run.accept(shards, run.stage(shards))
    location = world.config.table(Role.CANDIDATES).location
    version = table_version(spark, world.config.table(Role.CANDIDATES))
    shutil.rmtree(location)
    # As many versions as before, and other items for the same users.
    write_rows(spark, world.config, Role.CANDIDATES, [(ds, u, [(1, "own", 0.1)]) for ds, u, _ in toy_candidates()])
    assert table_version(spark, world.config.table(Role.CANDIDATES)) == version
    score_daily.main(world.args())
    assert (
        "cannot be resumed, and is begun anew: candidates: what stands there now is not what was pinned" in caplog.text
    )
    assert {pairs[0][0] for pairs in ranked(spark, world.config).values()} == {1}


def test_a_run_whose_inputs_were_vacuumed_is_begun_anew_and_what_it_published_cannot_be_replayed(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world = Toy.build(spark, tmp_path)
    score_daily.main(world.args(target="scores_before"))
    run = open_run(spark, world.config, score_daily._parser().parse_args(world.args()))
    shards = next(run.waves())
    run.accept(shards, run.stage(shards))
    table = DeltaTable.forPath(spark, world.config.table(Role.CANDIDATES).location)
    files = {Path(world.config.table(Role.CANDIDATES).location, path) for path in _files(table)}
    table.update("user_id = 3", {"candidates": "slice(candidates, 1, 1)"})
    removed = files - {Path(world.config.table(Role.CANDIDATES).location, path) for path in _files(table)}
    for path in removed:
        path.unlink()
    assert removed
    score_daily.main(world.args())
    assert "cannot be resumed, and is begun anew: files of what was pinned (" in caplog.text
    assert len(ranked(spark, world.config)[3]) == 1
    before = world.config.table(Role.SCORES, target="scores_before")
    [published] = read_table(spark, before).select("run_id").distinct().collect()
    with pytest.raises(InputError, match="were removed: a vacuum came between"):
        replay.main([published["run_id"], *world.settings()])


def _files(table: DeltaTable) -> set[str]:
    # Not from the file index, which Spark keeps for a while.
    rows = table.toDF().select(F.input_file_name().alias("file")).distinct().collect()
    return {str(row["file"]).rpartition("/candidates/")[2] for row in rows}


def test_candidates_that_were_made_anew_are_not_taken_for_those_of_before(spark: SparkSession, tmp_path: Path) -> None:
    world = Toy.build(spark, tmp_path)
    score_daily.main(world.args())
    ref = world.config.table(Role.CANDIDATES)
    version = table_version(spark, ref)
    shutil.rmtree(ref.location)
    write_rows(spark, world.config, Role.CANDIDATES, [(ds, u, [(1, "own", 0.1)]) for ds, u, _ in toy_candidates()])
    assert table_version(spark, ref) == version
    with pytest.raises(InputError, match="this differs since: candidates"):
        score_daily.main(world.args())


def test_rows_of_two_runs_are_mended_by_replace(spark: SparkSession, tmp_path: Path) -> None:
    world = Toy.build(spark, tmp_path)
    score_daily.main(world.args())
    before, ref = ranked(spark, world.config), world.config.table(Role.SCORES)
    foreign = read_table(spark, ref).limit(1).selectExpr("* except (run_id)", "'somebody' as run_id")
    foreign.write.format("delta").mode("append").save(ref.location)
    with pytest.raises(InputError, match=r"somebody.* --replace scores and replaces it"):
        score_daily.main(world.args())
    score_daily.main(world.args(replace=True))
    assert ranked(spark, world.config) == before
    assert read_table(spark, ref).count() == len(before)


@pytest.mark.parametrize(
    ("overrides", "options", "error", "message"),
    [
        ([], {"checkpoint": "gesr/0123"}, InputError, r"there is no checkpoint 'gesr/0123' .*run jobs/train\.py"),
        ([], {"ds": "2024-03-12"}, InputError, "no item states of checkpoint .* for 2024-03-12"),
        ([], {"ds": "yesterday"}, ConfigurationError, "--ds 'yesterday' is not a date"),
        ([], {"target": "scores; drop"}, ConfigurationError, "not a plain name"),
        (["tables.candidates.location=/nowhere/candidate"], {}, InputError, "there is no Delta table at /nowhere"),
        (["tables.candidates.columns={candidates: cands}"], {}, InputError, r"no column 'cands' .*did you mean"),
        (["scoring.device=cuda"], {}, ConfigurationError, "torch sees no GPU"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_scored(
    toy: Toy, overrides: Sequence[str], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "GPU" in message and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(error, match=message):
        score_daily.main([*toy.args(*overrides, **{"target": "scores_never", **options})])


def test_an_input_that_breaks_its_contract_is_refused_by_name(spark: SparkSession, tmp_path: Path) -> None:
    world = Toy.build(spark, tmp_path)
    ref = world.config.table(Role.USERS)
    read_table(spark, ref).where("user_id = 7").write.format("delta").mode("append").save(ref.location)
    with pytest.raises(InputError, match=r"users .*user_id.* 7 2 times; it must stand there once"):
        score_daily.main(world.args())
    write_plain(
        read_table(spark, ref).selectExpr("* except (user_id)", "double(user_id) user_id"), world.config, Role.USERS
    )
    with pytest.raises(InputError, match=r"column 'user_id' is double, expected"):
        score_daily.main(world.args())


def test_histories_of_another_day_are_refused(toy: Toy) -> None:
    toy.export_items(ds="2024-03-11")
    with pytest.raises(InputError, match=r"histories stand at 2024-03-10"):
        score_daily.main(toy.args(ds="2024-03-11", target="scores_never"))


def test_a_dry_run_writes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    world = Toy.build(spark, tmp_path)
    score_daily.main([*world.args(), "--dry-run"])
    assert not Path(world.config.table(Role.SCORES).location).exists()
    assert not Path(world.config.table(Role.STAGING).location).exists()


def test_toy_covers_cut_requests_and_unseen_items() -> None:
    sizes = [len(candidates) for _, _, candidates in toy_candidates()]
    assert max(sizes) > 7
    assert ITEMS - 5 < ITEMS
