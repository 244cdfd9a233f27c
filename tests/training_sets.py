"""A toy training set, as training_set.py writes it, and a configuration small enough to train on it. No JVM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gesr_core.config import Config, load_config
from gesr_core.content import json_bytes
from gesr_core.dates import request_time_us

DATES = ("2001-01-03", "2001-01-10", "2001-01-17")
ITEMS, USERS = 20, 30
_TOWERS = {"width": 8, "id_width": 8, "category_width": 4, "user_category_width": 2}
SMALL = [
    *(f"models.{name}.{key}={value}" for name in ("two_tower", "gesr", "tarq") for key, value in _TOWERS.items()),
    "models.gesr.gate_width=8", "models.gesr.match_width=4", "models.gesr.cross_width=4",
    "models.tarq.head_width=8", "models.tarq.heads=2", "models.tarq.levels=2", "models.tarq.codes=4",
    "training.epochs=2", "training.batch_requests=16", "training.threads=1", "training.learning_rate=0.01",
    "histories.max_events=6", "features.item_id_min_events=1",
]  # fmt: skip


def toy_config(folder: Path, *overrides: str) -> Config:
    """The `local` configuration with tiny models; everything is written under `folder`."""
    storage = [f"storage.{name}={folder}/{name}" for name in ("checkpoints", "item_states", "training_sets")]
    return load_config("local", overrides=[*SMALL, *storage, *overrides])


def toy_items(*, seed: int = 0, string_ids: bool = False) -> pa.Table:
    """An item table as of one date; the ids are not in order."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(ITEMS) * 10 + 3
    columns: dict[str, Any] = {
        "item_id": item_ids(ids, string_ids=string_ids),
        "product_subclass": pa.array([None if i % 7 == 0 else int(i % 4) for i in ids], pa.int64()),
        **{
            name: pa.array(rng.exponential(5, ITEMS), mask=rng.random(ITEMS) < 0.1)
            for name in ("buyers_7d", "buyers_28d", "days_since_first_sale", "mean_spend")
        },
    }
    if string_ids:
        columns["item_key"] = item_keys(columns["item_id"])
    return pa.table(columns)


def toy_requests(ds: str, *, seed: int, users: int = USERS, string_ids: bool = False) -> pa.Table:
    """Training request rows of one date: empty histories and items that no table has are among them."""
    rng = np.random.default_rng(seed)
    now_s = request_time_us(ds) // 1_000_000
    rows: dict[str, list[Any]] = {name: [] for name in ("items", "times", "actions", "values", "candidates", "labels")}
    for user in range(users):
        events = int(rng.integers(0, 9)) if user else 0
        items = rng.integers(0, ITEMS + 1, events) * 10 + 3
        candidates = np.sort(rng.choice(ITEMS, 6, replace=False) * 10 + 3)
        rows["items"].append(items)
        rows["times"].append(np.sort(now_s - rng.integers(1, 60 * 86_400, events)))
        rows["actions"].append(["buy"] * events)
        rows["values"].append(rng.exponential(50, events))
        rows["candidates"].append(candidates)
        rows["labels"].append(np.isin(candidates, items).astype(np.int32))
    history_ids, candidate_ids = (_lists(rows[name], string_ids=string_ids) for name in ("items", "candidates"))
    columns: dict[str, Any] = {
        "ds": [ds] * users,
        "user_id": pa.array(range(users), pa.int64()),
        "user_age_group": [["a", "b", None][user % 3] for user in range(users)],
        "user_pin_code": ["x"] * users,
        "history_item_id": history_ids,
        "history_time_s": pa.array(rows["times"], pa.list_(pa.int64())),
        "history_action": pa.array(rows["actions"], pa.list_(pa.string())),
        "history_value": pa.array(rows["values"], pa.list_(pa.float64())),
        "candidate_item_id": candidate_ids,
        "label_bought": pa.array(rows["labels"], pa.list_(pa.int32())),
        "label_bought_high_spend": pa.array([np.zeros(6, np.int32) for _ in range(users)], pa.list_(pa.int32())),
        "sampling_rate": pa.array([np.full(6, 0.2, np.float32)] * users, pa.list_(pa.float32())),
        "sampling_weight": pa.array([[1.0 + user % 2] * 6 for user in range(users)], pa.list_(pa.float32())),
        "exposed": pa.array([[True] * 5 + [False]] * users, pa.list_(pa.bool_())),
    }
    if string_ids:
        for side, ids in (("history", history_ids), ("candidate", candidate_ids)):
            columns[f"{side}_item_key"] = pa.ListArray.from_arrays(ids.offsets, item_keys(ids.values))
    return pa.table(columns)


def write_toy_set(folder: Path, *, string_ids: bool = False) -> Path:
    """Write a training set of three dates, the last to validate on."""
    for name in ("train", "validation", "items"):
        (folder / name).mkdir(parents=True)
    for number, ds in enumerate(DATES):
        pq.write_table(toy_items(seed=number, string_ids=string_ids), folder / "items" / f"{ds}.parquet")
    train = pa.concat_tables([toy_requests(ds, seed=n, string_ids=string_ids) for n, ds in enumerate(DATES[:2])])
    order = np.random.default_rng(5).permutation(train.num_rows)
    pq.write_table(train.take(order), folder / "train" / "part-0.parquet", row_group_size=25)
    validation = toy_requests(DATES[2], seed=9, string_ids=string_ids)
    pq.write_table(validation, folder / "validation" / "part-0.parquet")
    ids = item_ids(np.arange(ITEMS) * 10 + 3, string_ids=string_ids)
    pq.write_table(
        pa.table({"item_id": ids, "events": pa.array(range(ITEMS), pa.int64())}), folder / "item_events.parquet"
    )
    manifest = {"ds": "2001-01-24", "train_dates": DATES[:2], "validation_date": DATES[2], "content_sha256": "0"}
    (folder / "manifest.json").write_bytes(json_bytes(manifest))
    return folder


def item_ids(numbers: Any, *, string_ids: bool) -> pa.Array:
    """Ids as BIGINT or as STRING; text order is the number order, so both sort alike."""
    return pa.array([f"{n:05d}" for n in numbers]) if string_ids else pa.array(numbers, pa.int64())


def item_keys(ids: pa.Array) -> pa.Array:
    """Keys of STRING ids: a poor hash on purpose, under which many ids collide."""
    return pa.array([int(value) // 40 for value in ids.to_pylist()], pa.int64())


def _lists(values: list[Any], *, string_ids: bool) -> pa.ListArray:
    offsets = pa.array(np.concatenate([[0], np.cumsum([len(v) for v in values])]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, item_ids(np.concatenate(values).astype(np.int64), string_ids=string_ids))
