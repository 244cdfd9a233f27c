"""The goals of this benchmark, judged from finished cells; what is missed or not built stays in the list. No JVM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from benchmarks.quality import ml_100k, ta_feng
from benchmarks.quality.measures import SEGMENTS
from benchmarks.quality.report import BASELINE, RIVALS, Comparisons

WITHOUT: Final = SEGMENTS[1]
_POPULARITY: Final = ("popularity_7d", "popularity_28d")


@dataclass(frozen=True)
class Goal:
    """A goal; `met` is None where the question does not arise, `note` says why or what decided."""

    name: str
    goal: float
    value: float | None
    better: str
    met: bool | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the JSON line."""
        return asdict(self)


def judge(comparisons: Mapping[str, Comparisons]) -> list[Goal]:
    """Judge every goal of the data sets that were measured."""
    found: list[Goal] = []
    if (of_sample := comparisons.get(ta_feng.NAME)) is not None:
        found += _of_sample(of_sample)
    if (of_ratings := comparisons.get(ml_100k.NAME)) is not None:
        found += _of_ratings(of_ratings)
    return found


def _of_sample(c: Comparisons) -> Iterator[Goal]:
    straw_man = _ahead(c, BASELINE, _POPULARITY, WITHOUT, name="two_tower ahead of popularity", outside=False)
    yield straw_man
    note = "" if straw_man.met else "two_tower is a straw man: this does not count"
    for segment in SEGMENTS:
        yield _lower_ne(c, segment, note)
    yield _ndcg_ratio(c, note)
    for segment in SEGMENTS:
        yield _ahead(c, "gesr", RIVALS, segment, name="gesr ahead of every rival", outside=True)
    yield _kept_gain(c)
    yield _codes(c)


def _of_ratings(c: Comparisons) -> Iterator[Goal]:
    users = min(int(c.data.facts[f"test_users_{ds}"]) for ds in c.data.dates)
    for segment in SEGMENTS:
        goal = _ahead(c, "gesr", (BASELINE,), segment, name="gesr ahead of two_tower on ratings", outside=True)
        note = f"{goal.note}; {users} users"
        if users < ml_100k.MIN_USERS:
            goal = Goal(goal.name, goal.goal, goal.value, goal.better, None, f"not judged: {note}")
        yield Goal(goal.name, goal.goal, goal.value, goal.better, goal.met, note)


def _ahead(c: Comparisons, cell: str, others: tuple[str, ...], segment: str, *, name: str, outside: bool) -> Goal:
    """NDCG@10 above each of the others on every ds: the least difference, or the least lower end of its interval."""
    found, missing = [], [other for other in others if not c.data.cells.get(other)]
    for other in others:
        for ds in c.data.dates:
            difference = c.between(cell, other, ds, segment, "ndcg")
            if difference is not None:
                found.append((difference.low if outside else difference.value, other, ds))
    name = f"{name}, {'NDCG@10, least lower end of the interval' if outside else 'NDCG@10'}, {segment}"
    if not found:
        return Goal(name, 0.0, None, "higher", False, f"no result of {cell} beside {others}")
    value, other, ds = min(found)
    note = f"decided by {other} on {ds}" + (f"; no result of {missing}" if missing else "")
    return Goal(name, 0.0, value, "higher", value > 0 and not missing, note)


def _lower_ne(c: Comparisons, segment: str, note: str) -> Goal:
    name = f"gesr's NE below two_tower's, least share over the ds, {segment}"
    shares = _of_each_ds(c, lambda ds: _share(c, "gesr", BASELINE, ds, segment))
    if shares is None:
        return Goal(name, 0.08, None, "higher", False, "no result")
    return Goal(name, 0.08, min(shares), "higher", min(shares) >= 0.08 and not note, note)


def _share(c: Comparisons, cell: str, other: str, ds: str, segment: str) -> float | None:
    ours, theirs = (c.data.mean(name, ds, segment, "ne") for name in (cell, other))
    return None if ours is None or theirs is None else 1 - ours / theirs


def _ndcg_ratio(c: Comparisons, note: str) -> Goal:
    name = f"gesr's NDCG@10 as a multiple of two_tower's, mean of the ds, {WITHOUT}"
    means = [
        _of_each_ds(c, lambda ds: c.data.mean("gesr", ds, WITHOUT, "ndcg")),
        _of_each_ds(c, lambda ds: c.data.mean(BASELINE, ds, WITHOUT, "ndcg")),
    ]
    if means[0] is None or means[1] is None:
        return Goal(name, 2.0, None, "higher", False, "no result")
    value = float(np.mean(means[0]) / np.mean(means[1]))
    return Goal(name, 2.0, value, "higher", value >= 2.0 and not note, note)


def _kept_gain(c: Comparisons) -> Goal:
    """The share of its teacher's NE gain over the backbone that tarq keeps, where that gain is outside its interval."""
    name, segment, kept = "tarq keeps its teacher's NE gain over the backbone, least share over the ds", SEGMENTS[0], []
    if not all(c.data.cells.get(cell) for cell in ("tarq", "tarq_teacher", "tarq_backbone")):
        return Goal(name, 0.9, None, "higher", False, "not built: tarq, tarq_teacher, tarq_backbone")
    for ds in c.data.dates:
        gain = c.between("tarq_backbone", "tarq_teacher", ds, segment, "ne")
        ours = c.between("tarq_backbone", "tarq", ds, segment, "ne")
        if gain is not None and ours is not None and gain.low > 0:
            kept.append(ours.value / gain.value)
    if not kept:
        return Goal(
            name, 0.9, None, "higher", None, "not judged: the teacher's gain is inside its interval on every ds"
        )
    return Goal(name, 0.9, min(kept), "higher", min(kept) >= 0.9, f"{len(kept)} of {len(c.data.dates)} ds judged")


def _codes(c: Comparisons) -> Goal:
    """The least share of a level's codes that the catalogue uses, without revival, with alignment."""
    name = "codes of the codebook in use with alignment, least level"
    shares = [
        used / facts["codes"]
        for result in c.data.cells.get("tarq_alignment", ())
        for facts in result.facts["ds"].values()
        for used in facts["codes_used"]
    ]
    if not shares:
        return Goal(name, 0.98, None, "higher", False, "not built: tarq")
    return Goal(name, 0.98, min(shares), "higher", min(shares) >= 0.98)


def _of_each_ds(c: Comparisons, value: Callable[[str], float | None]) -> list[float] | None:
    found = [value(ds) for ds in c.data.dates]
    return None if any(v is None for v in found) else [v for v in found if v is not None]
