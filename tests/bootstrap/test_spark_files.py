"""Delta's coordinate, the configuration files, and that plain spark-submit finds both."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap import spark_files
from bootstrap.missing import Missing

VALUES = {"JAVA_HOMES_REPLACED": "''", "JAVA_HOME": "/env/java", "PYTHON": "/env/bin/python"}
NAMES = {"log4j2.properties", "spark-defaults.conf", "spark-env.sh"}

ROUND_TRIP = """
import sys
from pyspark.sql import SparkSession, functions as F

spark = SparkSession.builder.master("local[1]").getOrCreate()
day = spark.range(10).withColumn("ds", F.lit("2001-02-21")).coalesce(1)
day.write.format("delta").partitionBy("ds").save(sys.argv[1])
day.limit(3).write.format("delta").mode("overwrite").option("replaceWhere", "ds = '2001-02-21'").save(sys.argv[1])
print(spark.read.format("delta").load(sys.argv[1]).count())
"""


@pytest.mark.parametrize(
    ("spark", "coordinate"),
    [
        ("4.0.5", "io.delta:delta-spark_4.0_2.13:4.4.0"),
        ("4.1.4", "io.delta:delta-spark_4.1_2.13:4.4.0"),
        ("4.2.0.dev1", "io.delta:delta-spark_4.2_2.13:4.4.0"),
    ],
)
def test_the_artifact_carries_sparks_minor_version(spark: str, coordinate: str) -> None:
    assert spark_files.artifact(spark_version=spark, delta_version="4.4.0") == coordinate


def test_jars_of_another_spark_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars/delta-spark_4.0_2.13-4.4.0.jar").touch()
    assert spark_files.has_jars(tmp_path, "io.delta:delta-spark_4.0_2.13:4.4.0")
    assert not spark_files.has_jars(tmp_path, "io.delta:delta-spark_4.1_2.13:4.4.0")


def test_the_installed_version_is_read_from_the_dist_info(tmp_path: Path) -> None:
    (tmp_path / "pyspark-4.1.4.dist-info").mkdir()
    (tmp_path / "pyspark_client-4.0.0.dist-info").mkdir()
    assert spark_files.installed_version(tmp_path, "pyspark") == "4.1.4"
    with pytest.raises(Missing, match="holds 0 versions of delta_spark"):
        spark_files.installed_version(tmp_path, "delta_spark")


def test_conf_files_are_written_with_every_value_filled_in(tmp_path: Path) -> None:
    assert spark_files.write_conf(tmp_path, VALUES) == []
    written = {file.name: file.read_text() for file in (tmp_path / "conf").iterdir()}
    assert set(written) == NAMES
    assert all(text.startswith(spark_files.MARK) and "@" not in text for text in written.values())


def test_a_conf_file_that_is_ours_is_written_again(tmp_path: Path) -> None:
    spark_files.write_conf(tmp_path, VALUES)
    assert spark_files.write_conf(tmp_path, {**VALUES, "PYTHON": "/other/python"}) == []
    assert "/other/python" in (tmp_path / "conf/spark-env.sh").read_text()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_conf_file_that_is_not_ours_is_never_overwritten(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "conf" / name
    foreign.parent.mkdir()
    foreign.write_text("theirs")
    assert spark_files.write_conf(tmp_path, VALUES) == [foreign]
    assert foreign.read_text() == "theirs"
    assert {file.name for file in foreign.parent.iterdir()} == NAMES


@pytest.mark.parametrize(
    ("java_home", "expected"),
    [("", "/env/java"), ("/usr/lib/jvm/17", "/env/java"), ("/opt/my own 21", "/opt/my own 21")],
)
def test_a_java_home_of_the_users_own_is_kept(tmp_path: Path, java_home: str, expected: str) -> None:
    spark_files.write_conf(tmp_path, {**VALUES, "JAVA_HOMES_REPLACED": "'' | /usr/lib/jvm/17"})
    command = ["sh", "-c", '. "$0"; printf %s "$JAVA_HOME"', str(tmp_path / "conf/spark-env.sh")]
    done = subprocess.run(
        command, env={**os.environ, "JAVA_HOME": java_home}, capture_output=True, text=True, check=True
    )
    assert done.stdout == expected


def test_the_resolver_sees_this_spark_and_the_users_proxy_only(tmp_path: Path) -> None:
    pyspark = tmp_path / "lib/python3.11/site-packages/pyspark"
    environ = {"SPARK_HOME": "/other", "SPARK_ENV_LOADED": "1", "HTTPS_PROXY": "http://user@proxy:3128", "LANG": "C"}
    env = spark_files.resolver_environment(environ, pyspark=pyspark, java_home=Path("/j"), conf=Path("/c"))
    assert env["SPARK_HOME"] == str(pyspark)
    assert env["PYSPARK_PYTHON"] == str(tmp_path / "bin/python")
    assert env["SPARK_SUBMIT_OPTS"] == "-Dhttps.proxyHost=proxy -Dhttps.proxyPort=3128"
    assert "SPARK_ENV_LOADED" not in env
    assert env["LANG"] == "C"


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.petastorm
def test_plain_spark_submit_replaces_a_day_in_delta_without_a_word_of_its_own(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    if not (bin_folder.parent / "gesr-ready.json").exists():
        pytest.skip("this environment was not set up by make env")
    script = tmp_path / "round_trip.py"
    script.write_text(ROUND_TRIP)
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_", "JAVA_HOME"))
    }
    env["PATH"] = f"{bin_folder}{os.pathsep}{env['PATH']}"
    submit = shutil.which("spark-submit", path=env["PATH"])
    assert submit == str(bin_folder / "spark-submit")
    # Delta reads its log in 50 tasks otherwise, whatever there is to read
    small = ["--conf", "spark.databricks.delta.snapshotPartitions=1", "--conf", "spark.sql.shuffle.partitions=1"]
    command = [submit, *small, str(script), str(tmp_path / "table")]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)
    commits = sorted((tmp_path / "table/_delta_log").glob("*.json"))
    assert [json.loads(commit.read_text().splitlines()[0])["commitInfo"]["operation"] for commit in commits] == [
        "WRITE"
    ] * 2
