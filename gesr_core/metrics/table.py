"""Metrics as tables on the terminal. Runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gesr_core.metrics.ranking import ALL, MODEL, ORDERINGS, WITHOUT_TOP_ITEM, Metric

_TITLES = {ALL: "all items", WITHOUT_TOP_ITEM: "without the window's most frequent positive item"}
_NAMES: Final = {
    "mrr": "MRR",
    "novelty": "novelty (bits)",
    "survival": "survival of retrieved",
    "survival_of_bought": "survival of bought",
    "ranker_survival": "survival of picked and retrieved",
    "ranker_survival_of_picked": "survival of the ranker's picks",
    "catalogue_coverage": "coverage",
    "auc": "AUC",
    "gauc": "GAUC",
    "ne": "NE",
    "base_rate": "base rate",
    "calibration_error": "calibration error",
    "ndcg": "NDCG",
    "recall": "Recall",
    "ndcg_of_retrieved": "NDCG of retrieved",
    "recall_of_retrieved": "Recall of retrieved",
}
# What the model's own block shows beyond the comparison of orderings, in this order.
_OF_MODEL: Final = (
    *("mrr", "recall_of_retrieved", "ndcg_of_retrieved", "survival", "survival_of_bought", "ranker_survival"),
    *("ranker_survival_of_picked", "catalogue_coverage", "novelty", "auc", "gauc", "ne", "base_rate"),
    "calibration_error",
)
_DRIFT: Final = ("score_psi", "score_ks")


def format_table(metrics: Sequence[Metric], *, ks: Sequence[int], title: str) -> str:
    """Return everything a person reads first: orderings beside one another, then the model with intervals.

    One block per ordering's segment `all` and `without_top_item`; the model's metrics with their 95 % intervals; its
    NDCG and Recall in each declared segment; drift. Blank where there is no value.
    """
    lines = [title]
    for segment in [s for s in _TITLES if any(m.segment == s for m in metrics)]:
        lines += _orderings(metrics, segment, ks)
    lines += _of_model(metrics)
    lines += _segments(metrics)
    lines += _calibration(metrics)
    drift = [m for m in metrics if m.metric in _DRIFT]
    for segment in sorted({m.segment for m in drift}, reverse=True):
        values = {m.metric: m.value for m in drift if m.segment == segment}
        day = segment.partition(":")[2]
        lines += ["", f"scores against ds {day}: PSI {values['score_psi']:.4f}, KS {values['score_ks']:.4f}"]
    return "\n".join(lines)


def format_differences(differences: Sequence[Metric], *, title: str) -> str:
    """Return the differences of two publications as text: value, interval and whether it is outside 0."""
    width = max((len(m.segment) for m in differences), default=0)
    lines = [title, "over the users that both have; * where the 95 % interval leaves 0 out", ""]
    for m in differences:
        name = _named(m, m.metric.removesuffix("_difference"))
        lines.append(f"{m.segment:<{width}}  {name:<34}{_with_interval(m, sign=True)}{' *' if is_outside_0(m) else ''}")
    return "\n".join(lines)


def is_outside_0(difference: Metric) -> bool:
    """Say whether the interval of a difference leaves 0 out."""
    low, high = difference.ci_low, difference.ci_high
    return low is not None and high is not None and (low > 0 or high < 0)


def _orderings(metrics: Sequence[Metric], segment: str, ks: Sequence[int]) -> list[str]:
    values = {(m.ordering, m.metric, m.k): m.value for m in metrics if m.segment == segment}
    heads: list[tuple[str, str, int | None]] = []
    for name, metric in (("NDCG", "ndcg"), ("Recall", "recall")):
        heads += [(f"{name}@{k}", metric, k) for k in ks]
    heads += [(name.upper(), name, None) for name in ("auc", "gauc", "ne")]
    lines = ["", _TITLES[segment], " " * 16 + "".join(f"{head:>11}" for head, _, _ in heads)]
    for ordering in ORDERINGS:
        cells = [values.get((ordering, metric, k)) for _, metric, k in heads]
        lines.append(f"{ordering:<16}" + "".join(f"{'':>11}" if c is None else f"{c:>11.4f}" for c in cells))
    users = next((m.n for m in metrics if m.segment == segment and m.metric == "ndcg"), 0)
    return [*lines, f"NDCG and Recall over {users:,} users with a positive; AUC, GAUC, NE over the published pairs"]


def _of_model(metrics: Sequence[Metric]) -> list[str]:
    mine = [m for m in metrics if m.ordering == MODEL and m.segment == ALL]
    shown = [m for name in ("ndcg", "recall", *_OF_MODEL) for m in mine if m.metric == name]
    lines = [f"  {_named(m, m.metric):<38}{_with_interval(m)}{m.n:>12,}" for m in shown]
    return ["", f"{MODEL:<40}{'value':>10}{'95 % interval':>22}{'n':>14}", *lines] if lines else []


def _segments(metrics: Sequence[Metric]) -> list[str]:
    """One line per declared segment: the model's NDCG and Recall at the smallest cut, and survival."""
    mine = [m for m in metrics if m.ordering == MODEL]
    names = sorted({m.segment for m in mine if ":" in m.segment and m.metric not in _DRIFT})
    k = min((m.k for m in mine if m.metric == "ndcg" and m.k), default=None)
    if not names or k is None:
        return []
    width = max(map(len, names))
    columns = [("ndcg", k), ("recall", k), ("survival", None)]
    head = "".join(f"{_NAMES[name] + (f'@{k}' if cut else ''):>32}" for name, cut in columns)
    lines = ["", f"{'segment':<{width}}{'users':>9}{head}"]
    for name in names:
        found = {m.metric: m for m in mine if m.segment == name and m.k in (k, *_deepest(mine, m.metric))}
        users = found["ndcg"].n if "ndcg" in found else 0
        cells = [_with_interval(found[metric]) if metric in found else "" for metric, _ in columns]
        lines.append(f"{name:<{width}}{users:>9,}" + "".join(f"{cell:>32}" for cell in cells))
    return lines


def _deepest(metrics: Sequence[Metric], metric: str) -> list[int]:
    """Return the cut of a metric that has a single one."""
    cuts = {m.k for m in metrics if m.metric == metric and m.k is not None}
    return list(cuts) if len(cuts) == 1 else []


def _calibration(metrics: Sequence[Metric]) -> list[str]:
    predicted, observed = (
        {m.k: m for m in metrics if m.metric == f"calibration_{name}"} for name in ("predicted", "observed")
    )
    if not predicted:
        return []
    lines = [
        f"{k:>5}{predicted[k].value:>11.4f}{_with_interval(observed[k]):>32}{predicted[k].n:>12,}"
        for k in sorted(k for k in predicted if k is not None and k in observed)
    ]
    return ["", f"{'bin':>5}{'predicted':>11}{'observed':>32}{'pairs':>12}", *lines]


def _named(metric: Metric, name: str) -> str:
    label = _NAMES.get(name, name)
    return label if metric.k is None else f"{label}@{metric.k}"


def _with_interval(metric: Metric, *, sign: bool = False) -> str:
    form = "+.4f" if sign else ".4f"
    value = f"{metric.value:{form}}"
    if metric.ci_low is None or metric.ci_high is None:
        return f"{value:>10}{'':>20}"
    between = f"[{metric.ci_low:{form}}, {metric.ci_high:{form}}]"
    return f"{value:>10}{between:>20}"
