"""Files by their content: hashes, canonical JSON, atomic replacement. Runs anywhere; imports nothing but errors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gesr_core.errors import InputError


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_bytes(data: Any, *, indent: int | None = 1) -> bytes:
    """Return JSON with sorted keys and a newline: the same bytes for the same content."""
    return (json.dumps(data, sort_keys=True, indent=indent, ensure_ascii=False) + "\n").encode()


def digest_of(data: Any) -> str:
    """Return the SHA-256 of JSON-like data in hexadecimal digits."""
    return hashlib.sha256(json_bytes(data)).hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part of it."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def check_files(folder: Path, hashes: Mapping[str, str], *, remedy: str) -> None:
    """Compare files with their recorded SHA-256.

    Raises:
        InputError: names the first file that is missing or differs.
    """
    for name, expected in sorted(hashes.items()):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {remedy}")
        found = sha256_of(path)
        if found != expected:
            raise InputError(
                f"{path} was altered, truncated or swapped (its sha256 begins with "
                f"{found[:12]}, the manifest says {expected[:12]}); {remedy}"
            )
