"""The page: facts and figures into one HTML file with everything in it, and no script. Driver only."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gesr_core.report import figures
from gesr_core.report.facts import STAGES, MetricRow, Report
from gesr_core.report.metric_tables import (
    differences_table,
    drift_table,
    head_name,
    leading_head,
    runs_table,
    segment_tables,
)


def render(report: Report) -> str:
    """Return the page. Every text of the facts is escaped; figures are drawn here."""
    mine = [row for row in report.metrics if row.run_id == report.run.run_id]
    drawn = {
        "stages": figures.stages(report.took),
        "shards": figures.shards(report.shards),
        "scores": figures.score_distributions(report.scores),
        "calibration": figures.calibration(mine),
        "orderings": figures.by_ordering(mine),
        "segments": figures.by_segment(mine),
        "runs": figures.runs(report.metrics, report.beside),
    }
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            figures=drawn,
            stage_names=STAGES,
            leading=_leading(mine),
            tables=segment_tables(mine),
            drift=drift_table(mine),
            runs=runs_table(report.metrics, [run.run_id for run in report.beside]),
            differences=differences_table(report.metrics),
            names={run.run_id: figures.run_name(run) for run in report.beside},
            commands=_commands(report),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gesr_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "count": lambda number: f"{number:,}",
        "number": _number,
        "seconds": lambda seconds: f"{seconds:,.1f} s",
        "megabytes": lambda size: f"{size / 1e6:,.0f} MB",
        "time": _time,
        "head": head_name,
    }
    environment.filters.update(filters)
    environment.globals["svg"] = _svg
    return environment


def _leading(rows: list[MetricRow]) -> MetricRow | None:
    """The one value of the day's heading."""
    head = leading_head(rows)
    of_model = [row for row in rows if (row.metric, row.k) == head and (row.ordering, row.segment) == ("model", "all")]
    return of_model[0] if of_model else None


def _commands(report: Report) -> dict[str, str]:
    """What a person starts next, as the page says it."""
    env = "" if report.env == "local" else f" --env {report.env}"
    target = "" if report.target == "scores" else f" --target {report.target}"
    beside = f"--ds {report.ds}{env} --target scores_challenger"
    own = {name: f"jobs/{name}.py --ds {report.ds}{env}{target}" for name in ("evaluate", "report", "status")}
    return own | {"score_beside": f"jobs/score_daily.py {beside}", "evaluate_beside": f"jobs/evaluate.py {beside}"}


def _number(value: float) -> str:
    """Four decimals of what is about one, four digits of the rest."""
    return f"{value:.4f}" if 0.0001 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def _time(when: dt.datetime | None) -> str:
    return "not recorded" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _svg(figure: figures.Figure) -> Markup:
    """Put a figure into the page: what was drawn is markup, what is said of it is text."""
    start = Markup('<svg role="img" aria-label="{}"').format(figure.alt)
    return start + Markup(figure.svg.removeprefix("<svg"))
