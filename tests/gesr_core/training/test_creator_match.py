"""What only hard matching can know: a label that depends on a creator match alone, with creators that training never
saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gesr_core.content import json_bytes
from gesr_core.dates import request_time_us
from gesr_core.training.checkpoint import load_checkpoint
from gesr_core.training.trainer import open_training_set, train_checkpoint
from tests.training_sets import toy_config

DATES = ("2001-01-03", "2001-01-10")
CREATORS, ITEMS_EACH, USERS, EVENTS, CANDIDATES = 60, 4, 400, 6, 8
OVERRIDES = [
    "features.item=[{name: creator, kind: categorical}, {name: price, kind: numeric}]",
    "features.item_statistics=[]",
    "features.user=[]",
    "features.hard_match=[{history: creator, candidate: creator}]",
    "labels.tasks=[{name: bought, score_weight: 1.0}]",
    "training.epochs=6",
    "training.patience=6",
    "training.batch_requests=16",
    "training.catch_up_rate=0",
]


def items_of(date: int) -> pa.Table:
    """Items of creators that no other date has; the price says nothing."""
    creators = np.repeat(np.arange(CREATORS), ITEMS_EACH) + CREATORS * date
    ids = np.arange(len(creators)) + len(creators) * date
    return pa.table({"item_id": ids, "creator": creators, "price": np.random.default_rng(date).normal(size=len(ids))})


def requests_of(ds: str, date: int) -> pa.Table:
    """Every user has events of as many creators; half of the candidates are by one of them, and those are bought."""
    rng, now_s = np.random.default_rng(10 + date), request_time_us(ds) // 1_000_000
    first = CREATORS * ITEMS_EACH * date
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for _ in range(USERS):
        creators = rng.permutation(CREATORS)
        seen, others = creators[:EVENTS], creators[EVENTS:]
        made_by = np.concatenate([seen[: CANDIDATES // 2], others[: CANDIDATES // 2]])
        label = np.repeat([1, 0], CANDIDATES // 2)
        # Never the item of the event itself: the last of a creator's items is for histories alone.
        candidates = made_by * ITEMS_EACH + rng.integers(0, ITEMS_EACH - 1, CANDIDATES) + first
        order = np.argsort(candidates)
        history = rng.permutation(seen) * ITEMS_EACH + ITEMS_EACH - 1 + first
        rows.append((history.tolist(), candidates[order].tolist(), label[order].tolist()))
    histories, offered, labels = zip(*rows, strict=True)
    return pa.table(
        {
            "ds": [ds] * USERS,
            "user_id": pa.array(range(USERS), pa.int64()),
            "history_item_id": pa.array(histories, pa.list_(pa.int64())),
            "history_time_s": pa.array([[now_s - 86_400 * t for t in range(EVENTS, 0, -1)]] * USERS),
            "history_action": pa.array([["view"] * EVENTS] * USERS),
            "history_value": pa.array([[1.0] * EVENTS] * USERS),
            "candidate_item_id": pa.array(offered, pa.list_(pa.int64())),
            "label_bought": pa.array(labels, pa.list_(pa.int32())),
            "sampling_rate": pa.array([[1.0] * CANDIDATES] * USERS, pa.list_(pa.float32())),
            "sampling_weight": pa.array([[1.0] * CANDIDATES] * USERS, pa.list_(pa.float32())),
            "exposed": pa.array([[True] * CANDIDATES] * USERS),
        }
    )


@pytest.fixture(scope="module")
def creator_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set of one date to train and one to validate on, which share neither items nor creators."""
    folder = tmp_path_factory.mktemp("creators")
    for date, (ds, part) in enumerate(zip(DATES, ("train", "validation"), strict=True)):
        for name in (part, "items"):
            (folder / name).mkdir(exist_ok=True)
        pq.write_table(items_of(date), folder / "items" / f"{ds}.parquet")
        pq.write_table(requests_of(ds, date), folder / part / "part-0.parquet")
    known = items_of(0).select(["item_id"]).append_column("events", pa.array([9] * CREATORS * ITEMS_EACH))
    pq.write_table(known, folder / "item_events.parquet")
    manifest = {"ds": "2001-01-17", "train_dates": DATES[:1], "validation_date": DATES[1], "content_sha256": "0"}
    (folder / "manifest.json").write_bytes(json_bytes(manifest))
    return folder


def auc(folder: Path, root: Path, *overrides: str, model: str) -> float:
    """Train, and return the AUC on the creators that training never saw."""
    config = toy_config(root, *OVERRIDES, *overrides)
    path = train_checkpoint(open_training_set(folder, reader="arrow"), config, model_name=model)
    metrics: dict[str, Any] = load_checkpoint(path).manifest["metrics"]
    return float(metrics["epochs"][metrics["best_epoch"] - 1]["auc_bought"])


def test_two_towers_cannot_tell_new_creators_apart(creator_set: Path, tmp_path: Path) -> None:
    assert 0.45 <= auc(creator_set, tmp_path, model="two_tower") <= 0.55


def test_hard_matching_finds_the_match_of_creators_that_it_never_saw(creator_set: Path, tmp_path: Path) -> None:
    assert auc(creator_set, tmp_path, model="gesr") >= 0.99


def test_without_hard_matching_gesr_cannot_either(creator_set: Path, tmp_path: Path) -> None:
    assert 0.45 <= auc(creator_set, tmp_path, "features.hard_match=[]", model="gesr") <= 0.55
