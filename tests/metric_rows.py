"""Rows of users as `metrics.pairs.user_rows` gives them, made by hand, and their metrics without a JVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gesr_core.metrics.pairs import PAIR_COLUMNS
from gesr_core.metrics.ranking import ORDERINGS, Metric
from gesr_core.metrics.user_sums import Plan, Users, sum_users
from gesr_core.metrics.values import Sums, metrics_of

_TYPES = {
    "place": pa.int32(),
    "rank": pa.int32(),
    "score": pa.float64(),
    "logit": pa.float64(),
    "bought": pa.bool_(),
    "picked": pa.bool_(),
    "top": pa.bool_(),
    "popularity": pa.float64(),
    "random": pa.float64(),
    "mask": pa.int64(),
}
ROWS_TYPE = (
    "user_id bigint, draw bigint, segments array<int>, item_id array<bigint>, place array<int>, rank array<int>, "
    + (
        "score array<double>, logit array<double>, bought array<boolean>, picked array<boolean>, top array<boolean>, "
        "popularity array<double>, random array<double>, mask array<bigint>"
    )
)


@dataclass(frozen=True)
class Pair:
    """A pair of a user; by default an item that nobody retrieved, published or bought."""

    item_id: int
    place: int | None = None
    rank: int | None = None
    score: float | None = None
    logit: float | None = None
    bought: bool = False
    picked: bool = False
    top: bool = False
    popularity: float = 0.0
    random: float = 0.0
    mask: int = 0


def user_batch(
    users: Mapping[int, Sequence[Pair]], *, segments: Mapping[int, list[int]] | None = None
) -> pa.RecordBatch:
    """Return the rows of users; each draws by its own id."""
    ordered = {user: sorted(pairs, key=lambda pair: pair.item_id) for user, pairs in users.items()}
    columns: dict[str, Any] = {
        "user_id": pa.array(list(ordered), pa.int64()),
        "draw": pa.array([user * 0x9E3779B1 + 7 for user in ordered], pa.int64()),
        "segments": pa.array([(segments or {}).get(user, []) for user in ordered], pa.list_(pa.int32())),
        "item_id": pa.array([[p.item_id for p in pairs] for pairs in ordered.values()], pa.list_(pa.int64())),
    }
    for name in PAIR_COLUMNS:
        values = [[getattr(pair, name) for pair in pairs] for pairs in ordered.values()]
        columns[name] = pa.array(values, pa.list_(_TYPES[name]))
    return pa.RecordBatch.from_pydict(columns)


def plan(**changes: Any) -> Plan:
    """Return what is summed: by default little."""
    values: dict[str, Any] = {
        "ks": (1, 2),
        "published_k": 100,
        "user_segments": (),
        "pair_segments": (),
        "without_top_item": False,
        "calibration_edges": (),
        "auc_edges": dict.fromkeys(ORDERINGS, (0.0,)),
        "active_users": 1,
        "replicates": 50,
    }
    return Plan(**{**values, **changes, "ks": tuple(changes.get("ks", values["ks"]))})


def summed(batch: pa.RecordBatch, of: Plan) -> Sums:
    """Sum the rows."""
    return Sums(of, sum_users(Users.of(batch), of))


def measured(batch: pa.RecordBatch, of: Plan) -> list[Metric]:
    """Return every metric but AUC."""
    return list(metrics_of(summed(batch, of), {}))


def values_of(metrics: Sequence[Metric], *, ordering: str = "model", segment: str = "all") -> dict[Any, float]:
    """Return the values of one ordering and segment by (metric, k)."""
    return {(m.metric, m.k): m.value for m in metrics if (m.ordering, m.segment) == (ordering, segment)}
