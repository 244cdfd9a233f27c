"""Rivals that need no neural network: orderings of exactly the same candidates. numpy; no JVM.

Each takes what is known before the request time of the ds and returns a value per pair; the higher, the better.

Legend: P pairs, E events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from benchmarks.quality.prepared import Prepared, TestSet, look_up
from benchmarks.quality.tifu_knn import score, tuned, vectors_before
from gesr_core.dates import request_time_us
from gesr_core.names import Col

Rival = Callable[[Prepared, TestSet], np.ndarray]


def chance(prepared: Prepared, test: TestSet, *, seed: int = 17) -> np.ndarray:
    """A random value per pair."""
    return np.random.default_rng(seed).random(len(test.item_P))


def popularity(days: int) -> Rival:
    """How many different users had an event with the item in the `days` before the request time."""

    def values(prepared: Prepared, test: TestSet) -> np.ndarray:
        before_us = request_time_us(test.ds)
        events = prepared.events_before(before_us)
        recent = events["event_us"].to_numpy() >= before_us - days * 86_400_000_000
        users, items = (events[name].to_numpy()[recent] for name in (Col.USER_ID, Col.ITEM_ID))
        pairs = np.unique(np.stack([items, users]), axis=1)
        ids, counts = np.unique(pairs[0], return_counts=True)
        if not len(ids):
            return np.zeros(len(test.item_P))
        place_P = np.searchsorted(ids, test.item_P).clip(max=len(ids) - 1)
        return np.where(ids[place_P] == test.item_P, counts[place_P], 0).astype(np.float64)

    return values


def retrieval_order(prepared: Prepared, test: TestSet) -> np.ndarray:
    """The order in which the candidates were retrieved (docs/metrics.md)."""
    return -prepared.places(test).astype(np.float64)


def own_counts(prepared: Prepared, test: TestSet) -> np.ndarray:
    """How many events the user had with the item before the request time of the ds."""
    events = prepared.events_before(request_time_us(test.ds))
    pairs = np.stack([events[Col.USER_ID].to_numpy(), events[Col.ITEM_ID].to_numpy()])
    keys, counts = np.unique(pairs, axis=1, return_counts=True)
    return look_up((test.user_P, test.item_P), (keys[0], keys[1]), counts, missing=0).astype(np.float64)


def personal_frequency(prepared: Prepared, test: TestSet) -> np.ndarray:
    """The user's own count of the item first, ties by the buyers of the last 7 days."""
    popular_P = popularity(7)(prepared, test)
    return own_counts(prepared, test) + popular_P / (popular_P.max(initial=0.0) + 1.0)


RIVALS: Final[Mapping[str, Rival]] = {
    "popularity_7d": popularity(7),
    "popularity_28d": popularity(28),
    "retrieval_order": retrieval_order,
    "personal_frequency": personal_frequency,
}


def score_rival(name: str, prepared: Prepared, test: TestSet, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a rival's value per pair, and what is worth knowing of it."""
    if name == "random":
        return chance(prepared, test, seed=seed), {}
    if name == "tifu_knn":
        choice, ndcg = tuned(prepared.folder)
        vectors = vectors_before(prepared, test.ds, decay=choice.decay)
        (value_P,) = score(vectors, test, [(choice.neighbours, choice.own_share)])
        return value_P, {"tuned": asdict(choice), "validation_ndcg": ndcg}
    return RIVALS[name](prepared, test), {}
