"""Where the benchmark keeps things, and how a prepared folder comes about whole or not at all. Runs anywhere."""

from __future__ import annotations

import ast
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.quality.prepared import MANIFEST, Regime
from gesr_core.config import PROJECT_ROOT
from gesr_core.content import json_bytes

ROOT: Final = PROJECT_ROOT / "var/benchmarks"
DOWNLOADS: Final = ROOT / "downloads"
_HASH_DIGITS: Final = 16


def key_of(data: Any) -> str:
    """Return a short hash of what can be written as JSON."""
    return hashlib.sha256(json_bytes(data)).hexdigest()[:_HASH_DIGITS]


def code_hash(paths: Sequence[Path]) -> str:
    """Return a hash of what Python files do (of a folder, all below it): layout, comments, docstrings aside."""
    files = sorted({file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])})
    return key_of([[str(file.relative_to(PROJECT_ROOT)), _said(file)] for file in files])


# Each cell asks for the same files, which this process was started from.
@functools.cache
def _said(file: Path) -> str:
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into; it gets its name only when all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_manifest(
    folder: Path, *, name: str, key: str, regime: Regime, tasks: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Write what `prepared.open_prepared` reads first."""
    manifest = {"name": name, "key": key, "regime": regime.to_json(), "tasks": list(tasks), **facts}
    (folder / MANIFEST).write_bytes(json_bytes(manifest))
