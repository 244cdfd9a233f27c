"""What a worker process keeps between tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from gesr_core.runtime.worker import Loaded, ModelCache


@dataclass
class _Sized:
    nbytes: int


def _get(cache: ModelCache, name: str, *, nbytes: int) -> tuple[Any, bool]:
    return cache.get((name,), lambda: cast(Loaded, _Sized(nbytes)))


def test_what_was_loaded_is_kept_by_content_up_to_a_size() -> None:
    cache = ModelCache(100)
    first, hit = _get(cache, "a", nbytes=60)
    assert not hit
    assert _get(cache, "a", nbytes=60) == (first, True)
    assert not _get(cache, "b", nbytes=40)[1]
    assert _get(cache, "a", nbytes=60)[1]
    # Over the limit: b goes, which was asked for longest ago.
    assert not _get(cache, "c", nbytes=10)[1]
    assert _get(cache, "a", nbytes=60)[1]
    assert not _get(cache, "b", nbytes=40)[1]


def test_what_is_needed_now_stays_whatever_its_size() -> None:
    cache = ModelCache(1)
    assert not _get(cache, "a", nbytes=50)[1]
    assert _get(cache, "a", nbytes=50)[1]
    assert not _get(cache, "b", nbytes=50)[1]
    assert not _get(cache, "a", nbytes=50)[1]
