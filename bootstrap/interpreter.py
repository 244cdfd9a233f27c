"""Finds a Python for an environment and creates the environment. Standard library only."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bootstrap import debian
from bootstrap.missing import Missing, run_logged
from bootstrap.stack import Stack


def python_of(env: Path) -> Path:
    return env / "bin" / "python"


def version_of(python: str | Path) -> tuple[int, int] | None:
    """(major, minor) of an interpreter; None where it does not start (a pyenv shim may not)."""
    probe = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.split()
    return (int(words[0]), int(words[1])) if done.returncode == 0 and len(words) == 2 else None


def check_env(env: Path, stack: Stack) -> None:
    """Refuse an environment that is there but cannot serve.

    Raises:
        Missing: it has no working Python, or one that the set has no packages for.
    """
    version = version_of(python_of(env))
    if version is None:
        raise Missing(f"{env} has no Python that starts: deactivate it or remove it, then run it again")
    if not stack.allows(version):
        raise Missing(
            f"{env} has Python {dotted(version)}, and the {stack.name} set needs {span(stack)}: "
            "deactivate it or remove it, then run it again"
        )


def create_env(env: Path, stack: Stack) -> None:
    """A new virtual environment with pip in it.

    Raises:
        Missing: there is no Python for the set, or it can make no environments.
    """
    python = find_python(stack)
    # Debian packs ensurepip apart from its Python
    if not has_ensurepip(python) and debian.can_install(python):
        debian.install(["python3-venv"], log=stack.log("apt"))
    if not has_ensurepip(python):
        raise Missing(
            f"{python} cannot create virtual environments (no module venv or ensurepip): install them "
            "(Debian, Ubuntu: apt-get install python3-venv), or name another Python (make env PYTHON=/path/to/python3)"
        )
    what = f"creating {env.name}"
    run_logged([python, "-m", "venv", env], log=stack.log("venv"), what=what, remedy="", env=os.environ)


def has_ensurepip(python: str) -> bool:
    return subprocess.call([python, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL) == 0


def find_python(stack: Stack) -> str:
    """The first interpreter that the set's packages exist for.

    Raises:
        Missing: there is none.
    """
    for python in interpreters():
        version = version_of(python)
        if version and stack.allows(version):
            return python
    raise Missing(
        f"no Python {span(stack)} is here, which the {stack.name} set needs: install one, or name it "
        "(make env PYTHON=/path/to/python3)"
    )


def interpreters() -> Iterator[str]:
    """Candidates, in the order of preference: the user's choice, this one, the PATH, pyenv, Homebrew, uv's own."""
    if os.environ.get("PYTHON"):
        yield os.environ["PYTHON"]
    yield sys.executable
    names = ["python3", *(f"python3.{minor}" for minor in range(14, 9, -1))]
    yield from filter(None, map(shutil.which, names))
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    for folder, pattern in (
        (pyenv / "versions", "3.1*/bin/python3"),
        (Path("/opt/homebrew/opt"), "python@3.1*/bin/python3.1?"),
        (home / ".local/share/uv/python", "cpython-3.1*/bin/python3"),
    ):
        yield from map(str, sorted(folder.glob(pattern), reverse=True))


def dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def span(stack: Stack) -> str:
    return f"{dotted(stack.pythons[0])} to {dotted(stack.pythons[1])}"
