"""Rows of `metrics` as tables: which segments go together, and in which order columns and rows stand. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gesr_core.report.facts import MetricRow

OVERALL: Final = "all pairs and users"
MODEL: Final = "model"
ALL: Final = "all"
PREDICTED, OBSERVED = "calibration_predicted", "calibration_observed"
_AGAINST: Final = "against:"
# Known metrics in the order in which people read them; others follow by name.
_ORDER: Final = (
    "ndcg",
    "recall",
    "mrr",
    "ndcg_of_retrieved",
    "recall_of_retrieved",
    "survival",
    "survival_of_bought",
    "ranker_survival",
    "ranker_survival_of_picked",
    "auc",
    "gauc",
    "ne",
    "calibration_error",
    "base_rate",
    "catalogue_coverage",
    "novelty",
)
_ORDERINGS: Final = (MODEL, "retrieval_order", "popularity", "random")
# Of the pairs that a model itself chose to publish: between models they compare nothing (docs/metrics.md).
_OF_OWN_PAIRS: Final = ("auc", "gauc", "ne", "base_rate", "calibration_error")

Head = tuple[str, int | None]


@dataclass(frozen=True)
class Line:
    """A row of a table: what it is about, and a cell for each head; None where nothing was measured."""

    labels: tuple[str, ...]
    cells: tuple[MetricRow | None, ...]


@dataclass(frozen=True)
class MetricTable:
    """A table: `labels` head the first columns, `heads` the others."""

    title: str
    labels: tuple[str, ...]
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]


def head_name(head: Head) -> str:
    """Return a column's heading: `ndcg@10`."""
    metric, k = head
    return metric if k is None else f"{metric}@{k}"


def segment_tables(rows: Sequence[MetricRow]) -> list[MetricTable]:
    """Return one table for `all` and the like, then one for each declared segment (`NAME:VALUE`), by ordering."""
    of_family: dict[str, list[MetricRow]] = {}
    for row in _plain(rows):
        of_family.setdefault(_family(row.segment), []).append(row)
    names = sorted(of_family, key=lambda name: (name != OVERALL, name))
    return [_by_segment(name, of_family[name]) for name in names]


def runs_table(rows: Sequence[MetricRow], run_ids: Sequence[str]) -> MetricTable:
    """Return the publications side by side: the model's values over everything, in what compares between models."""
    of_models = [
        row for row in _plain(rows) if (row.ordering, row.segment) == (MODEL, ALL) and row.metric not in _OF_OWN_PAIRS
    ]
    heads = _heads(of_models)
    values = {(row.run_id, row.metric, row.k): row for row in of_models}
    lines = tuple(Line((run_id,), tuple(values.get((run_id, metric, k)) for metric, k in heads)) for run_id in run_ids)
    return MetricTable("publications of this ds", ("publication",), heads, lines)


def differences_table(rows: Sequence[MetricRow]) -> MetricTable:
    """Return what was measured of two publications together: `..._difference` rows, by the other one and by segment."""
    found = [row for row in rows if row.metric.endswith("_difference")]
    keys = sorted(
        {(row.run_id, row.ordering, row.segment) for row in found}, key=lambda key: (*key[:2], _natural(key[2]))
    )
    heads = _heads(found)
    values = {(row.run_id, row.ordering, row.segment, row.metric, row.k): row for row in found}
    lines = tuple(
        Line(
            (run_id, ordering.removeprefix(_AGAINST), segment),
            tuple(values.get((run_id, ordering, segment, metric, k)) for metric, k in heads),
        )
        for run_id, ordering, segment in keys
    )
    return MetricTable("differences", ("publication", "minus", "segment"), heads, lines)


def drift_table(rows: Sequence[MetricRow]) -> MetricTable:
    """Return how far the scores moved from those of former ds (segment `against:DS`), the newest first."""
    found = [row for row in rows if row.segment.startswith(_AGAINST)]
    heads = _heads(found)
    values = {(row.segment, row.metric, row.k): row for row in found}
    lines = tuple(
        Line((segment.removeprefix(_AGAINST),), tuple(values.get((segment, metric, k)) for metric, k in heads))
        for segment in sorted({row.segment for row in found}, reverse=True)
    )
    return MetricTable("scores against former ds", ("against ds",), heads, lines)


def calibration_bins(rows: Sequence[MetricRow]) -> list[tuple[MetricRow, MetricRow]]:
    """Return (predicted, observed) of each bin of the model's calibration over everything, in the order of bins."""
    of = {
        (row.metric, row.k): row
        for row in rows
        if (row.ordering, row.segment) == (MODEL, ALL) and row.metric in (PREDICTED, OBSERVED)
    }
    bins = sorted({k for _, k in of if k is not None})
    return [(of[PREDICTED, k], of[OBSERVED, k]) for k in bins if (PREDICTED, k) in of and (OBSERVED, k) in of]


def leading_head(rows: Sequence[MetricRow]) -> Head | None:
    """Return the metric that figures show: NDCG at the smallest k, or what stands first; None without any."""
    heads = _heads([row for row in _plain(rows) if row.ordering == MODEL])
    return heads[0] if heads else None


def orderings(rows: Sequence[MetricRow]) -> list[str]:
    """Return the orderings of rows, the model's first."""
    return sorted({row.ordering for row in rows}, key=_ordering_place)


def segments(rows: Sequence[MetricRow]) -> list[str]:
    """Return the segments of rows: everything first, then by name and value."""
    return sorted({row.segment for row in rows}, key=lambda name: (_family(name) != OVERALL, _natural(name)))


def _plain(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """What is a value of one publication, and no curve, drift or difference."""
    return [
        row
        for row in rows
        if row.metric not in (PREDICTED, OBSERVED)
        and not row.segment.startswith(_AGAINST)
        and not row.ordering.startswith(_AGAINST)
        and not row.metric.endswith("_difference")
    ]


def _by_segment(name: str, rows: Sequence[MetricRow]) -> MetricTable:
    heads = _heads(rows)
    values = {(row.segment, row.ordering, row.metric, row.k): row for row in rows}
    keys = {(row.segment, row.ordering) for row in rows}
    lines = tuple(
        Line(
            (segment if name == OVERALL else segment.removeprefix(f"{name}:"), ordering),
            tuple(values.get((segment, ordering, metric, k)) for metric, k in heads),
        )
        for segment in segments(rows)
        for ordering in orderings(rows)
        if (segment, ordering) in keys
    )
    return MetricTable(name, ("segment" if name == OVERALL else name, "ordering"), heads, lines)


def _heads(rows: Sequence[MetricRow]) -> tuple[Head, ...]:
    def place(head: Head) -> tuple[int, str, int]:
        metric = head[0].removesuffix("_difference")
        known = _ORDER.index(metric) if metric in _ORDER else len(_ORDER)
        return known, metric, head[1] or 0

    return tuple(sorted({(row.metric, row.k) for row in rows}, key=place))


def _family(segment: str) -> str:
    name, separator, _ = segment.partition(":")
    return name if separator else OVERALL


def _ordering_place(name: str) -> tuple[int, str]:
    return (_ORDERINGS.index(name) if name in _ORDERINGS else len(_ORDERINGS)), name


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Order `1-9` before `10-49`: digits count as numbers, and come before letters."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
