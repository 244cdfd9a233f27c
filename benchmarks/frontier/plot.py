"""Draw points of cost and quality as SVG. Runs in an environment of its own (requirements-plot.txt).

plot.py ROWS.json PICTURE.svg
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

_SEGMENT = "all"
_PANELS = (("ndcg", "NDCG@10, mean of the test ds (higher is better)", 1), ("ne", "NE (lower is better)", -1))
_KINDS = (
    ("rivals", "^", "#d95f02", lambda row: not row["ours"]),
    ("gesr", "o", "#1b9e77", lambda row: row["ours"] and row["cell"].startswith("gesr")),
    ("tarq", "s", "#7570b3", lambda row: row["ours"] and row["cell"].startswith("tarq")),
)


def main(rows_path: str, picture: str) -> None:
    """Draw both panels."""
    rows = json.loads(Path(rows_path).read_text())
    # The same rows give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "frontier", "svg.fonttype": "none", "font.size": 8})
    figure, axes = plt.subplots(len(_PANELS), 1, figsize=(9, 11), constrained_layout=True)
    for axis, (measure, title, sign) in zip(axes, _PANELS, strict=True):
        _panel(axis, [row for row in rows if measure in row], measure, sign)
        axis.set_ylabel(title)
        axis.set_xlabel("microseconds a pair, one core")
    figure.savefig(picture, metadata={"Date": None})


def _panel(axis: Any, rows: list[dict[str, Any]], measure: str, sign: int) -> None:
    axis.set_xscale("log")
    axis.grid(alpha=0.3)
    for name, marker, colour, belongs in _KINDS:
        found = [row for row in rows if belongs(row)]
        points = [(row["us_per_pair"], row[measure][_SEGMENT]) for row in found]
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=name, zorder=3)
    rivals = sorted((row["us_per_pair"], row[measure][_SEGMENT]) for row in rows if not row["ours"])
    best: list[tuple[float, float]] = []
    for cost, value in rivals:
        if not best or sign * value > sign * best[-1][1]:
            best.append((cost, value))
    right = max(row["us_per_pair"] for row in rows) * 1.5
    steps = [*best, (right, best[-1][1])]
    axis.step(*zip(*steps, strict=True), where="post", color="#d95f02", alpha=0.5, label="frontier of the rivals")
    _names(axis, rows, measure)
    axis.legend(loc="best")


def _names(axis: Any, rows: list[dict[str, Any]], measure: str) -> None:
    """Number the points by their height; what the numbers stand for is listed beside the axis."""
    ordered = sorted(rows, key=lambda row: -row[measure][_SEGMENT])
    for number, row in enumerate(ordered, start=1):
        place = row["us_per_pair"], row[measure][_SEGMENT]
        # Left and right, above and below by turns: neighbours lie close together.
        right, above = (5 if number % 2 else -5), (5 if number % 4 < 2 else -9)
        side = "left" if right > 0 else "right"
        axis.annotate(str(number), xy=place, xytext=(right, above), textcoords="offset points", fontsize=7, ha=side)
    lines = [f"{number:>2}  {row['cell']}" for number, row in enumerate(ordered, start=1)]
    axis.text(1.02, 1.0, "\n".join(lines), transform=axis.transAxes, va="top", fontsize=7, linespacing=1.6)


if __name__ == "__main__":
    main(*sys.argv[1:])
