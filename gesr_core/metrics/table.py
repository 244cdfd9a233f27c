"""Metrics as a table on the terminal. Runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence

from gesr_core.metrics.ranking import ALL, ORDERINGS, WITHOUT_TOP_ITEM, Metric

_TITLES = {ALL: "all items", WITHOUT_TOP_ITEM: "without the window's most frequent positive item"}


def format_table(metrics: Sequence[Metric], *, ks: Sequence[int], title: str) -> str:
    """Return the comparison as text: one block per segment, one line per ordering; blank where there is no value."""
    values = {(m.segment, m.ordering, m.metric, m.k): m.value for m in metrics}
    heads: list[tuple[str, str, int | None]] = []
    for name, metric in (("NDCG", "ndcg"), ("Recall", "recall")):
        heads += [(f"{name}@{k}", metric, k) for k in ks]
    heads += [(name.upper(), name, None) for name in ("auc", "gauc", "ne")]
    lines = [title]
    for segment in [s for s in _TITLES if any(m.segment == s for m in metrics)]:
        lines += ["", _TITLES[segment], " " * 16 + "".join(f"{head:>11}" for head, _, _ in heads)]
        for ordering in ORDERINGS:
            cells = [values.get((segment, ordering, metric, k)) for _, metric, k in heads]
            lines.append(f"{ordering:<16}" + "".join(f"{'':>11}" if c is None else f"{c:>11.4f}" for c in cells))
        users = next((m.n for m in metrics if m.segment == segment and m.metric == "ndcg"), 0)
        lines.append(f"NDCG and Recall over {users:,} users with a positive; AUC, GAUC, NE over the published pairs")
    return "\n".join(lines)
