"""The page's figures: matplotlib draws them as SVG that stands in the page and takes its colours. Driver only.

A figure is as wide as a phone's screen (400 px), so that its letters stay readable there; on a larger one it grows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, NullFormatter

from gesr_core.report.facts import STAGES, MetricRow, RunBeside, Scores, Shard, Took
from gesr_core.report.metric_tables import (
    ALL,
    MODEL,
    calibration_bins,
    head_name,
    leading_head,
    orderings,
    segments,
)

_WIDTH_IN: Final = 4.2
# Stand for colours of the page (templates/style.css), which has a light and a dark form of each.
_INK, _FAINT = "#010203", "#010204"
_SERIES: Final = ("#010211", "#010212", "#010213", "#010214")
_COLOURS: Final = {
    _INK: "currentColor",
    _FAINT: "var(--faint)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)},
}
_STYLE: Final[Mapping[Any, Any]] = {
    # Letters stay letters: to be searched, and in the page's own font.
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.alpha": 0.35,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # A dollar in somebody's segment is a dollar.
    "text.parse_math": False,
}
# More lines than this are not told apart, and longer names leave no room to draw in.
_MOST_SEGMENTS: Final = 40
_LONGEST_NAME: Final = 24
_MARKERS: Final = ("o", "s", "^", "D")


@dataclass(frozen=True)
class Figure:
    """A drawn figure: `svg` goes into the page as it is, `alt` says in words what it shows."""

    name: str
    title: str
    alt: str
    svg: str


def stages(took: Took) -> Figure | None:
    """Workers' seconds by stage; None where nothing was measured."""
    if not took.seconds:
        return None
    names = list(STAGES)
    seconds = [took.stages[name] for name in names]

    def draw(axis: Axes) -> None:
        bars = axis.barh([STAGES[name] for name in names], seconds, color=_SERIES[0])
        axis.bar_label(bars, [f"{value / took.seconds:.0%}" for value in seconds], padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("seconds, all workers added up")
        axis.set_ylabel("stage")

    told = ", ".join(f"{STAGES[name]} {value:.1f} s" for name, value in zip(names, seconds, strict=True))
    return _figure(
        "stages", "Workers' time by stage", f"Bars of workers' seconds by stage: {told}.", draw, height_in=2.0
    )


def shards(found: Sequence[Shard]) -> Figure | None:
    """Pairs and workers' seconds of each shard; None without shards."""
    if not found:
        return None
    numbers = [shard.shard for shard in found]
    pairs, seconds = [shard.took.pairs for shard in found], [shard.took.seconds for shard in found]
    title = "Pairs and seconds by shard"
    with _drawing("shards", height_in=3.4, rows=2) as (canvas, axes):
        panels = ((axes[0], pairs, "pairs", 0), (axes[1], seconds, "workers' seconds", 1))
        for axis, values, unit, series in panels:
            axis.bar(numbers, values, color=_SERIES[series])
            axis.set_ylabel(unit)
            axis.grid(axis="x", visible=False)
        axes[0].set_title(title)
        axes[1].set_xlabel("shard (number)")
        axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        svg = _svg(canvas)
    alt = (
        f"Two rows of bars over {len(found)} shards: pairs from {min(pairs):,} to {max(pairs):,}, "
        f"workers' seconds from {min(seconds):.2f} to {max(seconds):.2f}."
    )
    return Figure("shards", title, alt, svg)


def score_distributions(found: Sequence[Scores]) -> Figure | None:
    """The share of ranked pairs below each score, of the last of `found` and of the others; None without any.

    Of each publication the shares below its own bins' edges are known, so these are what is drawn.
    """
    if not found:
        return None
    *former, own = found

    def draw(axis: Axes) -> None:
        for number, scores in enumerate(former):
            same = scores.checkpoint_id == own.checkpoint_id
            style = "-" if same else ":"
            label = scores.ds if same else f"{scores.ds} (other model)"
            strength = 0.4 + 0.5 * (number + 1) / len(former)
            axis.plot(scores.edges, _below(scores), style, color=_SERIES[2], alpha=strength, linewidth=1.2, label=label)
        axis.plot(own.edges, _below(own), "-o", color=_SERIES[0], markersize=3, linewidth=2, label=f"{own.ds} (this)")
        axis.set_ylim(0, 1)
        axis.set_xlabel("score (no unit: the order within a user is by it)")
        axis.set_ylabel("share of ranked pairs below")
        _legend(axis)

    middle = own.edges[len(own.edges) // 2]
    alt = (
        f"Cumulative distribution of the scores of {own.ds}: about half of its {own.pairs:,} ranked pairs are below "
        f"{middle:.3g}; beside it those of {', '.join(scores.ds for scores in former) or 'no former ds'}."
    )
    return _figure("scores", "Scores of the ranked pairs", alt, draw)


def _below(scores: Scores) -> list[float]:
    total, below = 0.0, []
    for share in scores.shares[:-1]:
        total += share
        below.append(total)
    return below


def calibration(rows: Sequence[MetricRow]) -> Figure | None:
    """Predicted and observed rates by bin, with the diagonal; None where they were not measured."""
    bins = calibration_bins(rows)
    if not bins:
        return None
    predicted, observed = [p.value for p, _ in bins], [o.value for _, o in bins]
    low, high = _bars([o for _, o in bins])
    logarithmic = min(*predicted, *observed) > 0 and max(predicted) > 20 * min(predicted)

    def draw(axis: Axes) -> None:
        ends = (
            [min(*predicted, *observed), max(*predicted, *observed)] if logarithmic else [0, max(*predicted, *observed)]
        )
        axis.plot(ends, ends, "--", color=_FAINT, label="as predicted")
        axis.errorbar(
            predicted, observed, yerr=[low, high], fmt="o-", color=_SERIES[0], markersize=4, capsize=2, label="model"
        )
        if logarithmic:
            axis.set_xscale("log")
            axis.set_yscale("log")
            for of in (axis.xaxis, axis.yaxis):
                # Powers of ten would be formulas.
                of.set_major_formatter(lambda value, _: f"{value:g}")
                of.set_minor_formatter(NullFormatter())
        axis.set_xlabel("predicted rate of positives, mean of the bin")
        axis.set_ylabel("observed rate of positives")
        _legend(axis)

    told = "; ".join(f"{p:.3g} predicted, {o:.3g} observed" for p, o in zip(predicted, observed, strict=True))
    return _figure("calibration", "Calibration of the published pairs", f"Points by bin: {told}.", draw)


def by_ordering(rows: Sequence[MetricRow]) -> Figure | None:
    """The leading metric at each k with its interval, by ordering, over everything; None where it was not measured."""
    head = leading_head(rows)
    found = [row for row in rows if head and (row.metric, row.segment) == (head[0], ALL) and not _compares(row)]
    if head is None or not found:
        return None
    heads = sorted({(row.metric, row.k) for row in found}, key=lambda of: of[1] or 0)
    values = {(row.ordering, (row.metric, row.k)): row for row in found}
    names = orderings(found)

    def draw(axis: Axes) -> None:
        for number, name in enumerate(names):
            known = [(place, values[name, of]) for place, of in enumerate(heads) if (name, of) in values]
            shift = 0.6 * ((number + 0.5) / len(names) - 0.5)
            _points(axis, [place + shift for place, _ in known], [row for _, row in known], number, name)
        axis.set_xticks(range(len(heads)), [head_name(of) for of in heads])
        axis.set_xlim(-0.5, len(heads) - 0.5)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("metric and cut (places)")
        axis.set_ylabel(f"{head[0]} (0 to 1, mean of users)" if head[0] in ("ndcg", "recall", "mrr") else head[0])
        _legend(axis)

    told = ", ".join(f"{name} {values[name, head].value:.4f}" for name in names if (name, head) in values)
    alt = f"Points with 95 % intervals by ordering: {head_name(head)} is {told}."
    return _figure("orderings", f"{head[0].upper()} by ordering", alt, draw)


def by_segment(rows: Sequence[MetricRow]) -> Figure | None:
    """The leading metric of the model and of retrieval order by segment; None with fewer than two segments."""
    head = leading_head(rows)
    if head is None:
        return None
    values = {(row.ordering, row.segment): row for row in rows if (row.metric, row.k) == head and not _compares(row)}
    names = [name for name in segments(list(values.values())) if (MODEL, name) in values]
    if len(names) < 2:
        return None
    shown, left_out = names[:_MOST_SEGMENTS], len(names[_MOST_SEGMENTS:])
    kinds = [name for name in (MODEL, "retrieval_order") if any((name, segment) in values for segment in shown)]

    def draw(axis: Axes) -> None:
        for number, kind in enumerate(kinds):
            known = [(place, values[kind, of]) for place, of in enumerate(shown) if (kind, of) in values]
            shift = 0.3 * ((number + 0.5) / len(kinds) - 0.5)
            _points(axis, [place + shift for place, _ in known], [row for _, row in known], number, kind, flat=True)
        axis.set_yticks(range(len(shown)), [_shortened(name) for name in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.set_ylabel("segment")
        axis.set_xlabel(f"{head_name(head)}, with its 95 % interval")
        _legend(axis)

    told = ", ".join(f"{name} {values[MODEL, name].value:.4f}" for name in shown)
    more = f"; {left_out} more segments stand in the tables alone" if left_out else ""
    return _figure(
        "segments", f"{head_name(head)} by segment", f"Points with intervals, the model's: {told}{more}.", draw,
        height_in=1.6 + 0.3 * len(shown),
    )  # fmt: skip


def runs(rows: Sequence[MetricRow], beside: Sequence[RunBeside]) -> Figure | None:
    """The leading metric of the model in each publication of the ds; None with fewer than two."""
    head = leading_head(rows)
    found = {
        row.run_id: row for row in rows if (row.metric, row.k) == head and (row.ordering, row.segment) == (MODEL, ALL)
    }
    known = [run for run in beside if run.run_id in found]
    if head is None or len(known) < 2:
        return None
    names = [run_name(run) for run in known]

    def draw(axis: Axes) -> None:
        _points(axis, list(range(len(known))), [found[run.run_id] for run in known], 0, MODEL, flat=True)
        axis.set_yticks(range(len(known)), ["\n".join(map(_shortened, name.split(" in "))) for name in names])
        axis.invert_yaxis()
        axis.margins(y=0.3)
        axis.set_ylabel("publication")
        axis.set_xlabel(f"{head_name(head)}, with its 95 % interval")

    told = ", ".join(f"{name} {found[run.run_id].value:.4f}" for name, run in zip(names, known, strict=True))
    return _figure(
        "runs", f"{head_name(head)} by publication", f"Points with intervals: {told}.", draw,
        height_in=1.4 + 0.45 * len(known),
    )  # fmt: skip


def run_name(run: RunBeside) -> str:
    """Name a publication: its model and target, or its run id where the ledger does not know it."""
    return run.run_id if run.target is None else f"{run.model} in {run.target} ({run.run_id[:6]})"


def _legend(axis: Axes) -> None:
    """Name what is drawn below the axes, where it hides nothing."""
    handles, labels = axis.get_legend_handles_labels()
    axis.figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _shortened(name: str) -> str:
    """Leave out the middle of a long name: its ends tell segments apart."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = _LONGEST_NAME // 2
    return f"{name[: half - 1]}\u2026{name[-half:]}"


def _compares(row: MetricRow) -> bool:
    return row.ordering.startswith("against:") or row.segment.startswith("against:")


def _points(
    axis: Axes, places: Sequence[float], rows: Sequence[MetricRow], number: int, label: str, *, flat: bool = False
) -> None:
    """Draw values with their intervals; `flat`: places go down, values to the right."""
    values, interval = [row.value for row in rows], list(_bars(rows))
    style: Mapping[str, Any] = {
        "fmt": _MARKERS[number % len(_MARKERS)],
        "color": _SERIES[number % len(_SERIES)],
        "markersize": 4.5,
        "capsize": 2,
        "label": label,
    }
    if flat:
        axis.errorbar(values, list(places), xerr=interval, **style)
    else:
        axis.errorbar(list(places), values, yerr=interval, **style)


def _bars(rows: Sequence[MetricRow]) -> tuple[list[float], list[float]]:
    """How far the intervals reach below and above the values; where there is none, not at all."""
    below = [max(0.0, row.value - (row.value if row.ci_low is None else row.ci_low)) for row in rows]
    above = [max(0.0, (row.value if row.ci_high is None else row.ci_high) - row.value) for row in rows]
    return below, above


def _figure(name: str, title: str, alt: str, draw: Callable[[Axes], None], *, height_in: float = 2.8) -> Figure:
    with _drawing(name, height_in=height_in) as (canvas, axes):
        draw(axes[0])
        # Where labels are long, the middle of the axes is far to the right.
        canvas.suptitle(title, fontsize=10)
        return Figure(name, title, alt, _svg(canvas))


@contextmanager
def _drawing(name: str, *, height_in: float, rows: int = 1) -> Iterator[tuple[Canvas, Sequence[Axes]]]:
    """Yield an empty figure with `rows` axes above one another; the same facts give the same SVG."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        canvas = Canvas(figsize=(_WIDTH_IN, height_in), layout="constrained")
        yield canvas, list(canvas.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _svg(canvas: Canvas) -> str:
    """Return the figure as an element for an HTML page: no prolog, no size of its own, no name that another has."""
    written = io.StringIO()
    # The same facts give the same text.
    canvas.savefig(
        written, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", written.getvalue(), flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    text = re.sub(r'style="[^"]*"', lambda style: _coloured(style.group()), text)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    return f"<svg {box.group()}>{rest}".strip()


def _coloured(style: str) -> str:
    for colour, stands_for in _COLOURS.items():
        style = style.replace(colour, stands_for)
    return style
