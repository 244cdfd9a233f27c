"""setup.cfg's import contracts hold, and a violation is seen: `make lint` checks the first, this the checker."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.stack import ROOT

pytest.importorskip("importlinter", reason="the petastorm set has no linters")

VIOLATIONS = [
    ("gesr_core/schema.py", "import jobs", "gesr_core never imports jobs"),
    ("jobs/broken.py", "import benchmarks", "gesr_core and jobs never import benchmarks"),
    ("gesr_core/join/broken.py", "from gesr_core import sink", "never import one another"),
    ("gesr_core/ops/broken.py", "import pyarrow", "ops and model know torch"),
    ("gesr_core/runtime/broken.py", "import delta", "runtime never imports pyspark or delta"),
    ("gesr_core/metrics/broken.py", "import torch", "io, join, sink, metrics and report never import torch"),
    ("gesr_core/report/broken.py", "from gesr_core import sink", "never import one another"),
    ("gesr_core/model/broken.py", "from gesr_core import config", "only model/build.py"),
    ("pipelines/airflow/days.py", "from gesr_core import dates", "pipelines import neither jobs, gesr_core"),
    ("pipelines/airflow/dags/gesr_daily.py", "import pyspark", "pipelines import neither jobs, gesr_core"),
    ("jobs/broken.py", "import pipelines", "gesr_core and jobs never import pipelines"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the contracts are about."""
    for package in ("gesr_core", "jobs", "benchmarks", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", "setup.cfg", "--no-cache"]
    # the copy comes before the installed project
    return subprocess.run(command, cwd=tree, env={"PYTHONPATH": str(tree)}, capture_output=True, text=True)


def test_the_tree_keeps_its_contracts(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("file", "line", "contract"), VIOLATIONS, ids=[file for file, _, _ in VIOLATIONS])
def test_a_violation_is_seen(tree: Path, file: str, line: str, contract: str) -> None:
    with (tree / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = " ".join(done.stdout.split("Broken contracts")[1].split())
    assert contract in broken


def test_jobs_that_import_each_other_are_seen(tree: Path) -> None:
    (tree / "jobs/one.py").write_text("from jobs import two\n", encoding="utf-8")
    (tree / "jobs/two.py").write_text("", encoding="utf-8")
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "jobs.one is not allowed to import jobs.two" in " ".join(done.stdout.split())
