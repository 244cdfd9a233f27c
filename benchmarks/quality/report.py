"""From finished cells to rows, goals and a table. Runs anywhere; no JVM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from benchmarks.quality.bootstrap import Difference, difference, resampled
from benchmarks.quality.measures import SEGMENTS
from benchmarks.quality.plan import CELLS
from benchmarks.quality.store import Result

MEASURES: Final = ("ndcg", "recall", "gauc", "auc", "ne")
# NE is a loss.
_BETTER_LOW: Final = ("ne",)
BASELINE: Final = "two_tower"
RIVALS: Final = tuple(cell.name for cell in CELLS if cell.kind != "trained")
# The whole model of which a cell leaves something out.
WHOLE: Final = {cell.name: cell.model for cell in CELLS if cell.model not in ("", cell.name)}


@dataclass(frozen=True)
class Data:
    """One data set's finished cells (per seed) and the users of each test ds's units."""

    name: str
    cells: Mapping[str, Sequence[Result]]
    users: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    @property
    def dates(self) -> list[str]:
        """The test ds."""
        return sorted(self.users)

    def seeds(self, cell: str, ds: str, segment: str, measure: str, *, task: str | None = None) -> list[float]:
        """Return a measure of each seed; empty where the cell or the measure is missing."""
        found = []
        for result in self.cells.get(cell, ()):
            tasks = result.values[ds]
            of_task = tasks.get(task or next(iter(tasks)), {})
            if measure in of_task.get(segment, {}):
                found.append(of_task[segment][measure])
        return found

    def mean(self, cell: str, ds: str, segment: str, measure: str) -> float | None:
        """Return a measure's mean over seeds."""
        values = self.seeds(cell, ds, segment, measure)
        return float(np.mean(values)) if values else None

    @property
    def strongest_rival(self) -> str | None:
        """The rival with the highest NDCG@10 over all items, in the mean of the ds."""
        ndcg = {
            name: float(np.mean([self.mean(name, ds, SEGMENTS[0], "ndcg") or 0.0 for ds in self.dates]))
            for name in RIVALS
            if self.cells.get(name)
        }
        return max(ndcg, key=lambda name: ndcg[name]) if ndcg else None


@dataclass(frozen=True)
class Comparisons:
    """Differences between cells of one data set, from one set of draws per ds and segment."""

    data: Data
    draws: Mapping[tuple[str, str], Mapping[str, Mapping[str, np.ndarray]]]

    @staticmethod
    def of(data: Data) -> Comparisons:
        """Draw for every ds and segment."""
        draws = {}
        for ds in data.dates:
            for segment in SEGMENTS:
                sums = {name: [result.sums[ds][segment] for result in seeds] for name, seeds in data.cells.items()}
                # A cell of another task has no place beside the others'.
                first = [n for n in sums if _first_task(data, n, ds) == _first_task(data, next(iter(data.cells)), ds)]
                draws[ds, segment] = resampled(data.users[ds], {name: sums[name] for name in first})
        return Comparisons(data, draws)

    def between(self, cell: str, other: str, ds: str, segment: str, measure: str) -> Difference | None:
        """Return the difference of two cells in a measure; None where one has no value."""
        draws = self.draws[ds, segment]
        if measure not in draws.get(cell, {}) or measure not in draws.get(other, {}):
            return None
        ours, theirs = (self.data.seeds(name, ds, segment, measure) for name in (cell, other))
        return difference(ours, theirs, draws[cell][measure], draws[other][measure])


def rows(comparisons: Comparisons) -> Iterator[dict[str, Any]]:
    """Yield a row per cell, ds, task and segment: mean and spread over seeds, and differences with their intervals."""
    data = comparisons.data
    for name, results in data.cells.items():
        for ds in data.dates:
            tasks = list(results[0].values[ds])
            for task in tasks:
                for segment in SEGMENTS:
                    row: dict[str, Any] = {"data": data.name, "cell": name, "ds": ds, "task": task, "segment": segment}
                    row["seeds"] = len(results)
                    row["measures"] = dict(_spread(data, name, ds, segment, task))
                    if task == tasks[0]:
                        for other in (BASELINE, data.strongest_rival, WHOLE.get(name)):
                            if other and other != name:
                                row[f"against_{other}"] = dict(_against(comparisons, name, other, ds, segment))
                    yield row


def _spread(data: Data, name: str, ds: str, segment: str, task: str) -> Iterator[tuple[str, dict[str, float]]]:
    for measure in MEASURES:
        values = data.seeds(name, ds, segment, measure, task=task)
        if values:
            yield measure, {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def _against(
    comparisons: Comparisons, name: str, other: str, ds: str, segment: str
) -> Iterator[tuple[str, dict[str, float]]]:
    for measure in MEASURES:
        found = comparisons.between(name, other, ds, segment, measure)
        if found is not None:
            yield measure, asdict(found)


def _first_task(data: Data, name: str, ds: str) -> str:
    return next(iter(data.cells[name][0].values[ds]))


def table(data: Data, problems: Mapping[str, str]) -> str:
    """Return the comparison as text: NDCG@10 per ds (without the most bought item in brackets), then NE and GAUC."""
    heads = [f"{name} {ds[5:]}" for name in ("NDCG@10", "NE", "GAUC") for ds in data.dates]
    lines = [f"{data.name}", " " * 34 + "".join(f"{head:>17}" for head in heads)]
    for name, results in data.cells.items():
        cells = []
        for measure in ("ndcg", "ne", "gauc"):
            for ds in data.dates:
                pair = [data.mean(name, ds, segment, measure) for segment in SEGMENTS]
                shown = "" if pair[0] is None else f"{pair[0]:.4f} ({pair[1]:.4f})"
                cells.append(f"{shown:>17}")
        lines.append(f"{name:<30} x{len(results):<2}" + "".join(cells))
    lines += [f"{name}: {problem}" for name, problem in problems.items()]
    return "\n".join(lines)
