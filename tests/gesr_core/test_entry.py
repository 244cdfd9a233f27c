"""Exit codes and last lines of jobs, as a scheduler sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
from gesr_core.entry import run_job
from gesr_core import errors
def main(argv):
    {body}
run_job(main)
"""


def run(body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    env = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)


@pytest.mark.parametrize(
    ("body", "code", "last_line"),
    [
        ("pass", 0, ""),
        ("raise errors.GesrError('try again')", 1, "GesrError: try again"),
        ("raise errors.ConfigurationError('no such key')", 2, "ConfigurationError: no such key"),
        ("raise errors.InputError('no such table')", 3, "InputError: no such table"),
        ("raise errors.GateRefused('too high')", 4, "GateRefused: too high"),
        ("raise errors.AnotherRunWon('run 7')", 5, "AnotherRunWon: run 7"),
        ("raise KeyError('x')", 1, "KeyError: 'x'"),
    ],
)
def test_a_job_ends_with_its_code_and_says_why_last(body: str, code: int, last_line: str) -> None:
    done = run(body)
    assert done.returncode == code
    assert (done.stderr.splitlines() or [""])[-1] == last_line


@pytest.mark.parametrize(
    ("body", "last_line"),
    [
        ("pass", ""),
        ("raise errors.InputError('no such table')", "gesr_core.errors.InputError: no such table"),
        ("raise KeyError('x')", "KeyError: 'x'"),
    ],
)
def test_databricks_is_raised_the_error(body: str, last_line: str) -> None:
    done = run(body, DATABRICKS_RUNTIME_VERSION="17.3")
    assert (done.stderr.splitlines() or [""])[-1] == last_line
    assert done.returncode == (1 if last_line else 0)


def test_an_unforeseen_failure_keeps_its_traceback() -> None:
    assert "Traceback" in run("raise KeyError('x')").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --ds"),
        (["--ds", "2024-02-30"], "--ds '2024-02-30' is not a date of the form YYYY-MM-DD"),
        (["--ds", "2024-02-30-7d"], "--ds '2024-02-30' is not a date of the form YYYY-MM-DD"),
        (["--ds", "2024-02-20", "--set", "scoring.topk=1"], "unknown key 'scoring.topk'; did you mean 'top_k'?"),
    ],
)
def test_a_wrong_command_line_ends_with_code_2_before_spark_starts(arguments: list[str], message: str) -> None:
    job = [sys.executable, str(ROOT / "jobs" / "score_daily.py"), *arguments]
    # Without a PATH there is no Java: had Spark been started, it would say so instead.
    done = subprocess.run(job, capture_output=True, text=True, check=False, env={"PATH": ""}, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_without_java_a_job_says_what_to_do() -> None:
    job = [sys.executable, str(ROOT / "jobs" / "score_daily.py"), "--ds", "2024-02-20"]
    done = subprocess.run(job, capture_output=True, text=True, check=False, env={"PATH": ""}, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "ConfigurationError: Java not found (no java on PATH): set JAVA_HOME to a Java 17 or 21 "
        "(`make env` finds or installs one)"
    )
