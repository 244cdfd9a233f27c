"""Brings an environment to pipelines/airflow/requirements.txt: what `make airflow` runs.

    python -m bootstrap.airflow --env .venv-airflow

Apart from the jobs' own environment: Airflow pins much of what they use in other versions. Exit codes: 0 ready,
2 something is missing that a person must bring. Standard library only.
"""

import argparse
import fcntl
import os
import sys
import time
from pathlib import Path
from typing import Final

from bootstrap.interpreter import check_env, create_env, python_of
from bootstrap.missing import Missing, run_logged
from bootstrap.packages import REMEDY, find_uv, pip_settings, uv_environment
from bootstrap.stack import ROOT, STACKS, Stack, digest

# no constraints of its own: the requirements are exact
STACK: Final = Stack("airflow", pythons=((3, 10), (3, 13)), extras=())
REQUIREMENTS: Final = ROOT / "pipelines/airflow/requirements.txt"
STAMP: Final = "gesr-ready.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring a virtual environment to pipelines/airflow/requirements.txt.")
    parser.add_argument("--env", required=True, help="the environment's folder; made where there is none")
    env = Path(parser.parse_args().env).absolute()
    lock = ROOT / "var/setup/lock-airflow"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not is_ready(env):
                set_up(env)
    except Missing as missing:
        print(f"gesr set-up: {missing}", file=sys.stderr)
        return 2
    return 0


def wanted() -> str:
    return digest([REQUIREMENTS.read_text(encoding="utf-8")])


def is_ready(env: Path) -> bool:
    stamp = env / STAMP
    return (env / "bin/airflow").exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted()


def set_up(env: Path) -> None:
    """Make the environment where there is none, and install.

    Raises:
        Missing: no Python that serves, or packages that cannot be fetched.
    """
    started = time.monotonic()
    if not env.exists():
        create_env(env, STACK)
    check_env(env, STACK)
    python = python_of(env)
    command: list[str | Path] = [find_uv(env, STACKS["main"]), "pip", "install", "--python", python, "-r", REQUIREMENTS]
    uv_env = uv_environment(os.environ, pip_settings(python))
    run_logged(command, log=STACK.log("uv"), what="installing Airflow", remedy=REMEDY, env=uv_env)
    (env / STAMP).write_text(wanted(), encoding="utf-8")
    print(f"Airflow is in {env.name} ({time.monotonic() - started:.0f} s); a local one to look at: make airflow-up")


if __name__ == "__main__":
    sys.exit(main())
