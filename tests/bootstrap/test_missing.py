"""Every end of set-up is one line with what is missing and the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap import interpreter
from bootstrap.missing import Missing, reason, run_logged
from bootstrap.stack import ROOT, STACKS

PYTHON_SH = str(ROOT / "bootstrap/python.sh")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("error: x\n  cause: dns error\n", "no network: connect"),
        (
            "WARNING: [Errno -3] Temporary failure in name resolution\nERROR: No matching distribution",
            "no network: connect",
        ),
        ("\tHost a.b.c not found. url=d\n", "no network: connect"),
        ("OSError: [Errno 28] No space left on device", "the disk is full: free about 7 GB, then run it again"),
        ("noise\nerror: No solution found\nnoise", "error: No solution found"),
        ("first\nlast\n\n", "last"),
        ("", "it said nothing"),
    ],
)
def test_a_failed_command_is_told_in_one_line(output: str, expected: str) -> None:
    assert reason(output, remedy="connect") == expected


def test_a_failed_command_names_its_log(tmp_path: Path) -> None:
    log = tmp_path / "setup/step.log"
    command = [sys.executable, "-c", "import sys; print('noise'); sys.exit('error: broken')"]
    with pytest.raises(Missing, match=r"^the step failed: error: broken \(log: .*setup/step\.log\)$"):
        run_logged(command, log=log, what="the step", remedy="", env=os.environ)
    assert "noise" in log.read_text()


def test_no_python_for_the_set_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "interpreters", lambda: iter(["/nothing/python", sys.executable]))
    monkeypatch.setattr(interpreter, "version_of", lambda python: (3, 13) if python == sys.executable else None)
    assert interpreter.find_python(STACKS["main"]) == sys.executable
    with pytest.raises(Missing, match=r"^no Python 3\.10 to 3\.12 is here, which the petastorm set needs: install one"):
        interpreter.find_python(STACKS["petastorm"])


def test_an_environment_without_a_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="has no Python that starts: deactivate it or remove it"):
        interpreter.check_env(tmp_path, STACKS["main"])


def test_an_environment_with_a_python_beyond_the_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text("#!/bin/sh\necho 3 13\n")
    python.chmod(0o755)
    interpreter.check_env(tmp_path, STACKS["main"])
    with pytest.raises(Missing, match=r"has Python 3\.13, and the petastorm set needs 3\.10 to 3\.12"):
        interpreter.check_env(tmp_path, STACKS["petastorm"])


def test_a_machine_without_python_is_told_in_one_line(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(["/bin/sh", PYTHON_SH, "-V"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("gesr set-up: no Python from 3.10 on is here: install one")
    assert done.stderr.count("\n") == 1


def test_a_python_that_is_named_comes_first(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable}
    command = ["/bin/sh", PYTHON_SH, "-c", "import sys; print(sys.executable)"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sys.executable
