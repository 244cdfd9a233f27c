"""The stamp: when set-up has nothing to do, and what makes it look again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bootstrap import env as setup
from bootstrap.stack import STACKS, digest, fingerprint, requirements

MAIN = STACKS["main"]


@pytest.fixture
def ready_env(tmp_path: Path) -> Path:
    """An environment with a stamp, whose one witness is the file `jar`."""
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
    (tmp_path / "jar").touch()
    setup.write_stamp(tmp_path, MAIN, witnesses=[tmp_path / "jar"])
    return tmp_path


def test_a_stamped_environment_is_ready(ready_env: Path) -> None:
    assert setup.is_ready(ready_env, MAIN)


def test_an_environment_that_was_never_set_up_is_not_ready(tmp_path: Path) -> None:
    assert not setup.is_ready(tmp_path, MAIN)
    assert not setup.is_ready(tmp_path / "nothing", MAIN)


@pytest.mark.parametrize(
    "change",
    [
        lambda env: (env / "jar").unlink(),
        lambda env: (env / "pyvenv.cfg").write_text("version = 3.12.1\n"),
        lambda env: (env / setup.STAMP).write_text("{"),
        lambda env: (env / setup.STAMP).write_text("{}"),
    ],
    ids=["a jar is gone", "another Python", "half a stamp", "an empty stamp"],
)
def test_a_changed_environment_is_not_ready(ready_env: Path, change: Callable[[Path], object]) -> None:
    change(ready_env)
    assert not setup.is_ready(ready_env, MAIN)


def test_an_environment_that_another_checkout_set_up_is_not_ready(
    ready_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "ROOT", Path("/another/checkout"))
    assert not setup.is_ready(ready_env, MAIN)


def test_the_stamp_of_one_set_is_not_the_others(ready_env: Path) -> None:
    assert not setup.is_ready(ready_env, STACKS["petastorm"])


def test_the_fingerprint_depends_on_the_python_and_not_on_where_parts_join() -> None:
    assert fingerprint(MAIN, python_version="3.11.7") != fingerprint(MAIN, python_version="3.11.8")
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_requirements_come_with_the_sets_extras() -> None:
    main, petastorm = requirements(MAIN), requirements(STACKS["petastorm"])
    assert "pyspark>=4.0.1,<4.3" in main
    assert "pyspark>=4.0.1,<4.3" in petastorm
    assert any(line.startswith("ruff") for line in main)
    assert "diskcache" in petastorm
    assert not any(line.startswith("#") for line in main + petastorm)
