"""Read a published toy `scores` as the ranking team would, by the very queries of docs/contract.md."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession, functions as F

from gesr_core.config import PROJECT_ROOT
from gesr_core.errors import InputError
from gesr_core.names import Role
from jobs import maintain, migrate, score_daily, update_histories
from tests.toy import DS, USERS, Toy, toy_candidates, toy_config, write_rows, write_toy_checkpoint

deltalake = pytest.importorskip("deltalake")
pytest.importorskip("polars")
pytest.importorskip("duckdb")

pytestmark = pytest.mark.spark

DOCUMENT = PROJECT_ROOT / "docs/contract.md"
READERS = ("Spark", "polars", "DuckDB")
NEXT_DS = "2024-03-11"
# A task that is new stands between those that are there.
NEW_TASK = (
    "labels.tasks=[{name: bought, actions: [buy], score_weight: 1.0}, {name: returned, actions: [return]}, "
    "{name: bought_high_spend, actions: [buy], value_above: user_median}]"
)
COLUMNS = ["ds", "user_id", "item_id", "rank", "score", "logit_bought", "logit_bought_high_spend"]
COLUMNS += ["generation", "model_version", "run_id"]


def code_of(name: str) -> str:
    """The block of the document that is marked with a name."""
    [code] = re.findall(rf"<!-- tested: {re.escape(name)} -->\n```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return str(code)


def run_code(names: Sequence[str], **known: Any) -> dict[str, Any]:
    """Run blocks of the document one after the other, and return all that they named."""
    found = dict(known)
    for name in names:
        exec(compile(code_of(name), f"{DOCUMENT.name}, {name}", "exec"), found)
    return found


def flat_rows(reader: str, spark: SparkSession, scores: str, ds: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and sorted rows of the flat form, as Python values."""
    flat = run_code([f"flat in {reader}"], spark=spark, scores=scores, ds=ds)["flat"]
    if reader == "Spark":
        return flat.columns, sorted(map(tuple, flat.collect()), key=place)
    if reader == "polars":
        return flat.columns, sorted(flat.rows(), key=place)
    return flat.columns, sorted(flat.fetchall(), key=place)


def place(row: tuple[Any, ...]) -> tuple[Any, Any]:
    """User and rank."""
    return row[1], row[3]


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A world whose day was published once, and which the tests below take from publication to publication."""
    world = Toy.build(spark_session, tmp_path_factory.mktemp("contract"))
    score_daily.main(world.args())
    return world


@pytest.fixture(scope="module")
def string_toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The same with STRING ids."""
    world = Toy.build(spark_session, tmp_path_factory.mktemp("contract-string"), string_ids=True)
    score_daily.main(world.args())
    return world


@pytest.mark.parametrize("world", ["toy", "string_toy"])
def test_three_readers_agree_row_for_row_on_what_the_contract_says(
    world: str, spark: SparkSession, request: pytest.FixtureRequest
) -> None:
    scores = location(request.getfixturevalue(world))
    read = {reader: flat_rows(reader, spark, scores, DS) for reader in READERS}
    assert read["Spark"] == read["polars"] == read["DuckDB"]
    columns, rows = read["polars"]
    assert columns == COLUMNS
    # Every user of candidates, best first, at most top_k of them.
    ranked: dict[Any, list[tuple[Any, ...]]] = {}
    for row in rows:
        ranked.setdefault(row[1], []).append(row)
    assert len(ranked) == USERS
    sizes = sorted(min(5, len({item for item, _, _ in candidates})) for _, _, candidates in toy_candidates())
    assert sorted(map(len, ranked.values())) == sizes
    for pairs in ranked.values():
        assert [pair[3] for pair in pairs] == list(range(1, len(pairs) + 1))
        assert len({pair[2] for pair in pairs}) == len(pairs)
        by_contract = sorted(pairs, key=lambda pair: (-pair[4], pair[2]))
        assert pairs == by_contract
    assert all(math.isfinite(number) for row in rows for number in row[4:7])
    # The weights of the toy's tasks are 1 and 0.
    assert all(row[4] == row[5] for row in rows)
    assert {(row[0], row[7]) for row in rows} == {(DS, 1)}
    assert len({row[8:] for row in rows}) == 1
    assert None not in {value for row in rows for value in row}


def test_types_and_what_an_engine_must_be_able_to_read(toy: Toy, string_toy: Toy) -> None:
    for world, id_type in ((toy, "long"), (string_toy, "string")):
        table = deltalake.DeltaTable(location(world))
        assert table.metadata().partition_columns == ["ds"]
        protocol = table.protocol()
        assert (protocol.min_reader_version, protocol.reader_features) == (1, None)
        types = {field.name: field.type for field in table.schema().fields}
        element = types.pop("ranked").element_type
        assert {name: type_.type for name, type_ in types.items()} == {
            "ds": "string", "user_id": id_type, "generation": "long", "model_version": "string", "run_id": "string"
        }  # fmt: skip
        assert [(field.name, field.type.type) for field in element.fields] == [
            ("item_id", id_type),
            ("rank", "integer"),
            *((name, "float") for name in ("score", "logit_bought", "logit_bought_high_spend")),
        ]


def test_pollers_and_streams_see_a_publication_once_and_a_correction_as_a_new_generation(
    toy: Toy, spark: SparkSession, tmp_path: Path
) -> None:
    scores, copy = location(toy), str(tmp_path / "copy")
    seen = -1
    known = {"spark": spark, "scores": scores, "copy": copy, "checkpoint": str(tmp_path / "checkpoint")}
    reader = run_code(["flat in polars", "poll", "follow"], ds=DS, **known)

    def poll() -> list[tuple[str, int, str]]:
        nonlocal seen
        found = list(reader["publications"](scores, seen))
        seen = max([seen, *(version for version, *_ in found)])
        return [(ds, generation, run_id) for _, ds, generation, run_id in found]

    def plain_stream() -> None:
        stream = spark.readStream.format("delta").load(scores).writeStream.format("noop").trigger(availableNow=True)
        stream.option("checkpointLocation", str(tmp_path / "plain")).start().awaitTermination()

    first = run_of(spark, scores)
    assert poll() == [(DS, 1, first)]
    first_version = seen
    reader["follow"]()
    plain_stream()
    before = rows(spark, scores)
    assert rows(spark, copy) == [row[:4] for row in before]

    # Nothing new: another start of the job, and housekeeping.
    score_daily.main(toy.args())
    maintain.main(toy.settings())
    assert poll() == []
    assert rows(spark, scores) == before
    plain_stream()

    # A correction: one user's candidates are gone, all others are ranked as before.
    gone = before[0][1]
    candidates = DeltaTable.forPath(spark, toy.config.table(Role.CANDIDATES).location)
    candidates.delete(F.col("user_id") == gone)
    score_daily.main(toy.args(replace=True))
    second = run_of(spark, scores)
    assert poll() == [(DS, 2, second)]
    assert poll() == []
    after = rows(spark, scores)
    assert [row[:3] for row in after] == [row[:3] for row in before[1:]]
    reader["follow"]()
    assert rows(spark, copy) == [row[:4] for row in after]
    # What stood before can still be read by its version.
    former = reader["rows_of"](scores, first_version, DS)
    assert (len(former), set(former["generation"])) == (len(before), {1})

    feed = spark.read.format("delta").option("readChangeFeed", True).option("startingVersion", seen).load(scores)
    kinds = {row["_change_type"]: (row["rows"], row["generation"]) for row in by_kind(feed)}
    assert kinds == {"delete": (len(before), 1), "insert": (len(after), 2)}
    [quoted] = re.findall(r"^    (\[DELTA_SOURCE.*)$", DOCUMENT.read_text(), re.MULTILINE)
    with pytest.raises(StreamingQueryException, match=".*".join(map(re.escape, quoted.split("...")))):
        plain_stream()


def test_a_new_task_has_its_column_by_an_explicit_step_and_null_in_the_days_before(
    toy: Toy, spark: SparkSession, tmp_path: Path
) -> None:
    scores, copy = location(toy), str(tmp_path / "copy")
    follow = run_code(["follow"], spark=spark, scores=scores, copy=copy, checkpoint=str(tmp_path / "checkpoint"))[
        "follow"
    ]
    follow()
    world = Toy(toy.root, toy_config(toy.root, NEW_TASK), (NEW_TASK,))
    write_toy_checkpoint(world.config, seed=2)
    write_rows(spark, world.config, Role.CANDIDATES, [(NEXT_DS, *row[1:]) for row in toy_candidates()])
    update_histories.main(world.args(ds=NEXT_DS, target=None))
    world.export_items(ds=NEXT_DS)
    with pytest.raises(InputError, match=r"column 'ranked' is .*, but this checkpoint writes .*jobs/migrate.py"):
        score_daily.main(world.args(ds=NEXT_DS))
    migrate.main([*world.settings(), "--dry-run"])
    assert "logit_returned" not in logits(spark, scores)
    for _ in range(2):
        migrate.main(world.settings())
    assert logits(spark, scores) == ["logit_bought", "logit_returned", "logit_bought_high_spend"]
    score_daily.main(world.args(ds=NEXT_DS))
    [*_, (_, *newest)] = run_code(["poll"])["publications"](scores, -1)
    assert newest == [NEXT_DS, 1, run_of(spark, scores, ds=NEXT_DS)]
    for ds, known_then in ((DS, False), (NEXT_DS, True)):
        read = {engine: flat_rows(engine, spark, scores, ds) for engine in READERS}
        assert read["Spark"] == read["polars"] == read["DuckDB"]
        columns, flat = read["Spark"]
        assert {row[columns.index("logit_returned")] is not None for row in flat} == {known_then}
    follow()
    assert rows(spark, copy) == [row[:4] for row in rows(spark, scores)]
    # Neither may a column go, nor change its place.
    with pytest.raises(InputError, match="does not become item_id, rank, score, logit_bought, logit_bought_high_spend"):
        migrate.main(toy.settings())


def location(toy: Toy) -> str:
    return toy.config.table(Role.SCORES).location


def rows(spark: SparkSession, table: str) -> list[tuple[Any, ...]]:
    """(ds, user_id, ranked, ...) in the order of ds and user; the fields of `ranked` by their names."""
    found = (row.asDict(recursive=True) for row in spark.read.format("delta").load(table).collect())
    return sorted((tuple(row.values()) for row in found), key=lambda row: row[:2])


def run_of(spark: SparkSession, scores: str, *, ds: str = DS) -> str:
    [row] = spark.read.format("delta").load(scores).where(F.col("ds") == ds).select("run_id").distinct().collect()
    return str(row["run_id"])


def by_kind(feed: Any) -> list[Any]:
    counted = feed.groupBy("_change_type").agg(F.count("*").alias("rows"), F.max("generation").alias("generation"))
    return list(counted.collect())


def logits(spark: SparkSession, scores: str) -> list[str]:
    element: Any = spark.read.format("delta").load(scores).schema["ranked"].dataType
    return [name for name in element.elementType.fieldNames() if name.startswith("logit_")]
