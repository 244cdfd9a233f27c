"""Points of cost and quality, and which of ours a rival makes needless. Runs anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.line import goal
from benchmarks.quality.measures import SEGMENTS
from benchmarks.quality.plan import Cell
from benchmarks.quality.report import BASELINE, Data

# Better is higher; NE is a loss.
_SIGN: Final[Mapping[str, float]] = {"ndcg": 1.0, "ne": -1.0}
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """What a cell costs and how good it is; without a value it has no such measure."""

    name: str
    ours: bool
    us_per_pair: float
    values: Mapping[tuple[str, str], float]


def dominating(point: Point, points: Sequence[Point], key: tuple[str, str]) -> list[str]:
    """Name the rivals that cost no more and are at least as good in a (measure, segment)."""
    sign = _SIGN[key[0]]
    return [
        rival.name
        for rival in points
        if not rival.ours
        and rival.name != point.name
        and key in rival.values
        and rival.us_per_pair <= point.us_per_pair
        and sign * rival.values[key] >= sign * point.values[key]
    ]


def judge(points: Sequence[Point]) -> Iterator[Row]:
    """Yield for each measure and segment the share of our points that no rival dominates."""
    for key in ((measure, segment) for measure in _SIGN for segment in SEGMENTS):
        ours = [point for point in points if point.ours and key in point.values]
        behind = {point.name: rivals for point in ours if (rivals := dominating(point, points, key))}
        yield goal(
            f"our points on or beyond the rivals' frontier, {key[0]}, {key[1]}", goal=1.0, better="higher",
            value=1 - len(behind) / len(ours) if ours else None,
            note="; ".join(f"{name} behind {', '.join(rivals)}" for name, rivals in behind.items()),
        )  # fmt: skip


def point_of(name: str, cell: Cell, cost: Row, quality: Data) -> Point:
    """Return the point of a cell: two_tower is a rival, and measures are means over seeds and test ds."""
    values = {}
    for measure in _SIGN:
        for segment in SEGMENTS:
            of_ds = [quality.mean(name, ds, segment, measure) for ds in quality.dates]
            if None not in of_ds:
                values[measure, segment] = float(np.mean([value for value in of_ds if value is not None]))
    return Point(name, cell.kind == "trained" and name != BASELINE, cost["us_per_pair"], values)


def row_of(point: Point, cell: Cell, cost: Row, points: Sequence[Point], quality: Data) -> Row:
    """Return what the JSON line says of a point; `behind` names the rivals that dominate it."""
    row: Row = {
        "cell": point.name, "ours": point.ours, "seeds": len(quality.cells[point.name]),
        "overrides": [*cell.overrides, *cell.serving], "us_per_pair": point.us_per_pair,
        "pairs_per_s": 1e6 / point.us_per_pair, "batch_pairs": cost["batch_pairs"], "seconds": cost["seconds"],
    }  # fmt: skip
    for (measure, segment), value in point.values.items():
        row.setdefault(measure, {})[segment] = value
        row.setdefault("behind", {}).setdefault(measure, {})[segment] = dominating(point, points, (measure, segment))
    return row


def table(rows: Sequence[Row]) -> str:
    """Return the points as text, the cheapest first."""
    lines = [f"{'':<32}{'us a pair':>10}{'NDCG@10':>18}{'NE':>18}"]
    for row in sorted(rows, key=lambda row: row["us_per_pair"]):
        shown = [_both(row.get(name)) for name in _SIGN]
        lines.append(f"{row['cell']:<32}{row['us_per_pair']:>10.3f}" + "".join(f"{text:>18}" for text in shown))
    return "\n".join(lines)


def _both(values: Mapping[str, float] | None) -> str:
    return "" if values is None else f"{values[SEGMENTS[0]]:.4f} ({values[SEGMENTS[1]]:.4f})"
