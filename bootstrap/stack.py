"""The two sets of versions: the environment, Pythons, requirements and constraints of each. Standard library only."""

import configparser
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Stack:
    """A tested set of versions."""

    name: str
    # first and last (major, minor) that every wheel of the set exists for
    pythons: tuple[tuple[int, int], tuple[int, int]]
    extras: tuple[str, ...]
    # installed after the rest and without what they ask for
    without_dependencies: tuple[str, ...] = ()

    @property
    def constraints(self) -> Path:
        return ROOT / "constraints" / f"{self.name}.txt"

    def allows(self, version: tuple[int, int]) -> bool:
        return self.pythons[0] <= version <= self.pythons[1]

    def log(self, step: str) -> Path:
        suffix = "" if self.name == "main" else f"-{self.name}"
        return ROOT / "var" / "setup" / f"{step}{suffix}.log"


STACKS = {
    "main": Stack("main", pythons=((3, 10), (3, 14)), extras=("spark", "test", "dev", "mlflow", "report", "docs")),
    # pyarrow 14 has no wheels beyond 3.12; petastorm's pin of setuptools contradicts torch's
    "petastorm": Stack(
        "petastorm",
        pythons=((3, 10), (3, 12)),
        extras=("spark", "test", "petastorm"),
        without_dependencies=("petastorm",),
    ),
}


def requirements(stack: Stack) -> list[str]:
    """What setup.cfg asks for, with the set's extras."""
    cfg = configparser.ConfigParser(interpolation=None)
    cfg.read(ROOT / "setup.cfg", encoding="utf-8")
    fields = [cfg["options"]["install_requires"], *(cfg["options.extras_require"][extra] for extra in stack.extras)]
    return [line for field in fields for line in field.splitlines() if line and not line.startswith("#")]


def pinned(stack: Stack, name: str) -> str:
    """The requirement `name==version` of the constraint set."""
    lines = stack.constraints.read_text(encoding="utf-8").splitlines()
    return next(line.split(";")[0].strip() for line in lines if line.startswith(f"{name}=="))


def fingerprint(stack: Stack, *, python_version: str) -> str:
    """Changes whenever an environment would be set up in another way."""
    files = [
        stack.constraints,
        *sorted((ROOT / "bootstrap").glob("*.py")),
        *sorted((ROOT / "bootstrap/spark_conf").iterdir()),
    ]
    return digest([python_version, *requirements(stack), *(file.read_text(encoding="utf-8") for file in files)])


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
