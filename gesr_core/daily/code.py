"""Which code and libraries run here: shards that others scored are not mixed with ours. Driver only."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version as package_version
from pathlib import Path
from typing import Any, Final

import gesr_core
from gesr_core.content import digest_of, sha256_of
from gesr_core.names import ON_DATABRICKS

_PACKAGES: Final = ("pyspark", "delta-spark", "torch", "pyarrow", "numpy")


def made_by() -> dict[str, Any]:
    """Return the versions of this package and of what scores follow from."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    return {"code": code_version(), "versions": versions}


def _version(package: str) -> str:
    """A package's version; of what the platform brings otherwise (Databricks: Spark and Delta), the platform's."""
    try:
        return package_version(package)
    except PackageNotFoundError:
        return f"of runtime {os.environ.get(ON_DATABRICKS, 'unknown')}"


@cache
def code_version() -> str:
    """Return the package's version and the beginning of a hash of its sources, or of the archive that they are in."""
    root = Path(gesr_core.__file__).parent
    sources = {str(path.relative_to(root)): sha256_of(path) for path in sorted(root.rglob("*.py"))}
    if not sources:
        # Spark's --py-files: a zip on the path.
        sources = {path.name: sha256_of(path) for path in root.parents if path.is_file()}
    return f"{gesr_core.__version__}+{digest_of(sources)[:12]}"
