"""The wheel alone, in a fresh environment: its entry points start there, and score a day."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyspark
import pytest
from pyspark.sql import SparkSession

from bootstrap.packages import find_uv, pins_for, pip_settings, uv_environment
from bootstrap.stack import STACKS
from gesr_core.io.tables import read_table
from gesr_core.names import Role
from tests.spark_keys import toy_spark_keys
from tests.toy import USERS, Toy, toy_candidates

ROOT = Path(__file__).parents[2]
STACK = STACKS["main"]
# What a wheel is made from.
SOURCES = ("gesr_core", "jobs", "conf", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
# Says where the package and its configuration are, and which entry points are there and can be called.
ASK = """
import json
from importlib.metadata import distribution
import gesr_core
from gesr_core.config import CONF_DIR, load_config
points = distribution("gesr-batch-scoring").entry_points
print(json.dumps({
    "package": gesr_core.__file__,
    "conf": str(CONF_DIR),
    "environments": [load_config(env).scoring.shards for env in ("local", "databricks", "databricks,databricks_dev")],
    "entry_points": {point.name: callable(point.load()) for point in points},
}))
"""
WAIT_S = 600
ONE_WAVE = "scoring.shards_per_wave=6"

pytestmark = [pytest.mark.spark, pytest.mark.slow]


def run(command: Sequence[str | Path], *, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it says belongs to the failure."""
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def fresh() -> Iterator[Path]:
    """An environment that has the wheel with its extra `spark`, under the exact versions of the main set."""
    # Not in /tmp: on the file system of the checkout uv links its cache's files, 5 GB of them, and copies none.
    folder = ROOT / "var/wheel"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ours = Path(sys.prefix)
    uv = find_uv(ours, STACK)
    settings = uv_environment(os.environ, pip_settings(Path(sys.executable)))
    try:
        wheel = build(folder, uv=uv, settings=settings)
        run([uv, "venv", "--python", sys.executable, folder / "env"], cwd=folder, environment=settings)
        wanted = ["-c", str(pins_for(ours, STACK)), f"gesr-batch-scoring[spark] @ {wheel.as_uri()}"]
        install = [uv, "pip", "install", "--python", str(folder / "env/bin/python"), *wanted]
        run(install, cwd=folder, environment=settings)
        # As set-up does (bootstrap/spark_files.py): Delta's jars belong among Spark's.
        (jars,) = folder.glob("env/lib/python*/site-packages/pyspark/jars")
        for jar in (Path(pyspark.__file__).parent / "jars").glob("delta-*.jar"):
            shutil.copy(jar, jars)
        yield folder / "env"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build(folder: Path, *, uv: str, settings: dict[str, str]) -> Path:
    """Build the wheel from a copy, so that nothing is left in the checkout."""
    source = folder / "source"
    source.mkdir()
    for path in (ROOT / name for name in SOURCES):
        if path.is_dir():
            shutil.copytree(path, source / path.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    options = ["--wheel", "--no-build-isolation", "--python", sys.executable, "-o", str(folder)]
    run([uv, "build", *options, str(source)], cwd=folder, environment=settings)
    (wheel,) = folder.glob("*.whl")
    return wheel


def alone(environment: Path) -> dict[str, str]:
    """The variables of a shell in which that environment is active, and nothing of ours is known."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_", "PYTHON"))}
    java = os.environ.get("JAVA_HOME") or str(Path(sys.prefix) / "java")
    path = f"{environment}/bin:{os.environ['PATH']}"
    return {**kept, "VIRTUAL_ENV": str(environment), "PATH": path, "JAVA_HOME": java, "SPARK_LOCAL_IP": "127.0.0.1"}


def test_the_wheel_has_its_entry_points_and_its_configuration(fresh: Path, tmp_path: Path) -> None:
    done = run([fresh / "bin/python", "-c", ASK], cwd=tmp_path, environment=alone(fresh))
    found = json.loads(done.stdout)
    assert found["package"].startswith(str(fresh))
    assert Path(found["conf"]) == Path(found["package"]).parent / "conf"
    assert found["environments"] == [16, 512, 512]
    jobs = {f"gesr-{path.stem.replace('_', '-')}" for path in (ROOT / "jobs").glob("[a-z]*.py")}
    assert found["entry_points"] == dict.fromkeys(jobs, True)
    for name in jobs:
        assert (fresh / "bin" / name).is_file()


def test_the_wheel_alone_scores_a_day(fresh: Path, spark: SparkSession, tmp_path: Path) -> None:
    toy = Toy.build(spark, tmp_path / "toy")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    keys = toy_spark_keys(tmp_path / "spark")
    # Its workers, too, must find the package by themselves.
    del keys["spark.executorEnv.PYTHONPATH"]
    arguments = toy.args(ONE_WAVE, f"spark={json.dumps(keys)}", target="by_wheel")
    run([fresh / "bin/gesr-score-daily", *arguments], cwd=elsewhere, environment=alone(fresh))
    rows = read_table(spark, toy.config.table(Role.SCORES, target="by_wheel")).collect()
    assert sorted(row["user_id"] for row in rows) == list(range(USERS))
    best = {row["user_id"]: [item["item_id"] for item in row["ranked"]] for row in rows}
    for _, user, candidates in toy_candidates():
        assert len(best[user]) == min(toy.config.scoring.top_k, len(candidates))
        assert {*best[user]} <= {item for item, _, _ in candidates}
