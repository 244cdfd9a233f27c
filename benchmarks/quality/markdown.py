"""The tables that documents quote, from the kept JSON line: `python -m benchmarks.quality.markdown` writes them anew.

A document holds a table between `<!-- quality:NAME -->` and `<!-- /quality:NAME -->`; a test holds documents against
the line. Runs anywhere; no JVM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Final

from benchmarks.quality.measures import SEGMENTS
from benchmarks.quality.report import BASELINE, WHOLE
from gesr_core.config import PROJECT_ROOT
from gesr_core.content import replace_file

KEPT: Final = PROJECT_ROOT / "benchmarks/results/quality.cpu.json"
DOCUMENTS: Final = tuple(PROJECT_ROOT / name for name in ("README.md", "docs/models.md", "docs/benchmarks.md"))
_BLOCK: Final = re.compile(r"(<!-- quality:(\w+) -->\n).*?(<!-- /quality:\2 -->)", re.DOTALL)
_VERDICTS: Final[Mapping[bool | None, str]] = {True: "met", False: "**missed**", None: "not judged"}


@dataclass(frozen=True)
class Line:
    """The JSON line of a comparison."""

    content: Mapping[str, Any]

    @cached_property
    def data(self) -> list[str]:
        """The data sets, in the order of the run."""
        return list(dict.fromkeys(row["data"] for row in self.content["rows"]))

    def cells(self, data: str) -> dict[str, list[Mapping[str, Any]]]:
        """Return the rows of each cell's first task, by cell."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.content["rows"]:
            if row["data"] == data:
                rows = found.setdefault(row["cell"], [])
                if not rows or row["task"] == rows[0]["task"]:
                    rows.append(row)
        return found


def comparison(line: Line) -> Iterator[str]:
    """Yield a table per data set: every cell on every ds, in brackets without the most bought item."""
    for data in line.data:
        cells = line.cells(data)
        dates = list(dict.fromkeys(row["ds"] for rows in cells.values() for row in rows))
        heads = [f"{name} {ds[5:]}" for name in ("NDCG@10", "NE") for ds in dates]
        yield from _table(
            [data, "seeds", *heads],
            [
                [
                    f"`{cell}`",
                    str(rows[0]["seeds"]),
                    *(_pair(rows, measure, [ds]) for measure in ("ndcg", "ne") for ds in dates),
                ]
                for cell, rows in cells.items()
            ],
        )
        yield ""


def ablation(line: Line) -> Iterator[str]:
    """Yield a table per data set: models and their parts, mean of the ds, and how each differs from the whole."""
    for data in line.data:
        cells = {name: rows for name, rows in line.cells(data).items() if name in (BASELINE, *WHOLE, *WHOLE.values())}
        rows = [
            [f"`{cell}`", _pair(rows, "ndcg"), _pair(rows, "ne"), _less(rows, cell, "ndcg"), _less(rows, cell, "ne")]
            for cell, rows in cells.items()
        ]
        yield from _table([data, "NDCG@10", "NE", "NDCG@10 less the whole model's", "NE less the whole model's"], rows)
        yield ""


def parts(line: Line) -> Iterator[str]:
    """Yield one table: the models and their parts on every data set, in the mean of the ds."""
    found = {data: line.cells(data) for data in line.data}
    names = dict.fromkeys(name for cells in found.values() for name in cells)
    measures = [(data, measure) for data in found for measure in ("ndcg", "ne")]
    heads = [f"{data}, {'NDCG@10' if measure == 'ndcg' else 'NE'}" for data, measure in measures]
    yield from _table(
        ["", *heads],
        [
            [f"`{name}`", *(_pair(found[data].get(name, ()), measure) for data, measure in measures)]
            for name in names
            if name in (BASELINE, *WHOLE, *WHOLE.values())
        ],
    )


def goals(line: Line) -> Iterator[str]:
    """Yield the goals and what became of them."""
    rows = [
        [
            goal["name"],
            f"{goal['goal']:g}",
            "-" if goal["value"] is None else f"{goal['value']:.4f}",
            _VERDICTS[goal["met"]],
            goal["note"],
        ]
        for goal in line.content["goals"]
    ]
    yield from _table(["goal", "wanted", "measured", "", "why"], rows)


BLOCKS: Final[Mapping[str, Callable[[Line], Iterator[str]]]] = {
    "comparison": comparison,
    "ablation": ablation,
    "parts": parts,
    "goals": goals,
}


def filled(text: str, line: Line) -> str:
    """Return a document's text with its tables as the line has them."""

    def block(found: re.Match[str]) -> str:
        return found[1] + "\n".join(BLOCKS[found[2]](line)).strip("\n") + "\n" + found[3]

    return _BLOCK.sub(block, text)


def kept_line() -> Line:
    """Read the line that documents quote."""
    return Line(json.loads(KEPT.read_bytes()))


def _pair(rows: Sequence[Mapping[str, Any]], measure: str, dates: Sequence[str] = ()) -> str:
    """The mean over the ds, and in brackets that without the most bought item."""
    values = [
        [
            row["measures"][measure]["mean"]
            for row in rows
            if row["segment"] == segment and measure in row["measures"] and (not dates or row["ds"] in dates)
        ]
        for segment in SEGMENTS
    ]
    return f"{fmean(values[0]):.4f} ({fmean(values[1]):.4f})" if all(values) else ""


def _less(rows: Sequence[Mapping[str, Any]], cell: str, measure: str) -> str:
    """The mean difference from the whole model over all items, and on how many ds it is outside its interval."""
    against = f"against_{WHOLE.get(cell)}"
    found = [row[against][measure] for row in rows if row["segment"] == SEGMENTS[0] and measure in row.get(against, {})]
    if not found:
        return ""
    outside = sum(not one["low"] <= 0 <= one["high"] for one in found)
    return f"{fmean(one['value'] for one in found):+.4f} ({outside} of {len(found)})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    for document in DOCUMENTS:
        replace_file(document, filled(document.read_text(), kept_line()).encode())
