"""Brings an environment to a set of versions: the start of `make env`.

    python -m bootstrap.env --stack main --env .venv

Steps, each of which does nothing where it is done already: the virtual environment, its packages, a Java, Delta's jars,
Spark's configuration. Exit codes: 0 ready, 2 something is missing that a person must bring. Standard library only.
"""

import argparse
import errno
import fcntl
import json
import os
import shlex
import sys
import time
from pathlib import Path

from bootstrap import java, packages, spark_files
from bootstrap.interpreter import check_env, create_env
from bootstrap.missing import Missing
from bootstrap.stack import ROOT, STACKS, Stack, fingerprint

STAMP = "gesr-ready.json"


def main() -> int:
    arguments = parse_arguments()
    stack, env = STACKS[arguments.stack], Path(arguments.env).absolute()
    try:
        if not is_ready(env, stack):
            set_up_alone(env, stack)
    except Missing as missing:
        print(f"gesr set-up: {missing}", file=sys.stderr)
        return 2
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"gesr set-up: the disk is full ({err.filename}): free about 7 GB, then run it again", file=sys.stderr)
        return 2
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bring a virtual environment to a tested set of versions.")
    parser.add_argument("--stack", choices=sorted(STACKS), default="main")
    parser.add_argument("--env", required=True, help="the environment's folder; made where there is none")
    return parser.parse_args()


def is_ready(env: Path, stack: Stack) -> bool:
    """Whether this very set-up left its stamp and all that it stands on is still there; starts no process."""
    try:
        stamp = json.loads((env / STAMP).read_text(encoding="utf-8"))
        same = bool(stamp["fingerprint"] == fingerprint(stack, python_version=python_version(env)))
        # an active environment may have been set up by another checkout, and would run that one's code
        here = bool(stamp["root"] == str(ROOT))
        return same and here and all(Path(witness).exists() for witness in stamp["witnesses"])
    except (OSError, ValueError, KeyError):
        return False


def write_stamp(env: Path, stack: Stack, *, witnesses: list[Path]) -> None:
    stamp = {
        "fingerprint": fingerprint(stack, python_version=python_version(env)),
        "root": str(ROOT),
        "witnesses": [str(witness) for witness in witnesses],
    }
    (env / STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")


def python_version(env: Path) -> str:
    """The environment's Python version as its pyvenv.cfg states it, which saves starting it."""
    lines = (env / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith("version")), "")


def set_up_alone(env: Path, stack: Stack) -> None:
    """Set up, with no second set-up beside it in this checkout."""
    lock = ROOT / "var/setup/lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        # the one that we waited for may have done it
        if not is_ready(env, stack):
            set_up(env, stack)


def set_up(env: Path, stack: Stack) -> None:
    """All steps, with a line and its seconds for each."""
    started = time.monotonic()
    print(f"setting up {shown(env)} (versions: constraints/{stack.name}.txt; logs: var/setup)", flush=True)
    # an environment that a person made is taken as it is where it serves
    ours = (env / STAMP).exists() or not env.exists()
    if not env.exists():
        create_env(env, stack)
        say("virtual environment", started)
    check_env(env, stack)
    packages.install_packages(env, stack, ours=ours)
    say("packages", started)
    java_home = java.ensure_java(env, stack)
    say(f"Java: {java_home}", started)
    witnesses = set_up_spark(env, stack, java_home=java_home)
    say("Delta's jars and Spark's configuration", started)
    write_stamp(env, stack, witnesses=witnesses)
    print(f"ready: source {shown(env)}/bin/activate", flush=True)


def set_up_spark(env: Path, stack: Stack, *, java_home: Path) -> list[Path]:
    """Jars, configuration and the environment's Java home; returns the paths that a ready environment has."""
    site = next(env.glob("lib/python3*/site-packages"))
    pyspark = site / "pyspark"
    spark_version = spark_files.installed_version(site, "pyspark")
    delta_version = spark_files.installed_version(site, "delta_spark")
    coordinate = spark_files.artifact(spark_version=spark_version, delta_version=delta_version)
    java.write_java_home(java_home, env / "java")
    if not spark_files.has_jars(pyspark, coordinate):
        spark_files.install_jars(pyspark, stack, coordinate=coordinate, java_home=env / "java")
    foreign = spark_files.write_conf(pyspark, conf_values(env, java_home=java_home))
    for file in foreign:
        print(f"left as it is, because set-up did not write it: {shown(file)}", flush=True)
    dist_infos = [site / f"pyspark-{spark_version}.dist-info", site / f"delta_spark-{delta_version}.dist-info"]
    return [*dist_infos, *(pyspark / "jars").glob("delta-*.jar"), *(pyspark / "conf").iterdir(), java_home / "bin/java"]


def conf_values(env: Path, *, java_home: Path) -> dict[str, str]:
    """What the templates in bootstrap/spark_conf leave open."""
    # replaced by the environment's own Java home: no JAVA_HOME, the one found, and one that Spark cannot run on
    replaced = {"", str(java_home)}
    theirs = os.environ.get("JAVA_HOME", "")
    if java.java_version(Path(theirs)) not in java.VERSIONS:
        replaced.add(theirs)
    return {
        "JAVA_HOMES_REPLACED": " | ".join(shlex.quote(home) for home in sorted(replaced)),
        "JAVA_HOME": shlex.quote(str(env / "java")),
        "PYTHON": str(env / "bin/python"),
    }


def say(step: str, started: float) -> None:
    print(f"  {time.monotonic() - started:5.0f} s  {step}", flush=True)


def shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
