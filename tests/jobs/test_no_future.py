"""Nothing at or after the request time reaches what is learned or shipped: all of it stays byte-identical."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession

from gesr_core.dates import request_time
from gesr_core.io.tables import read_table
from gesr_core.names import Role
from jobs import build_candidates, export_items, train
from tests.toy import DS, toy_config, toy_overrides, write_rows, write_toy_inputs

pytestmark = [pytest.mark.spark, pytest.mark.slow]

SMALL = (
    "impressions={dates: 3, negative_rate: 0.5}",
    "candidates={als_rank: 4, als_iterations: 2, als_min_item_events: 1}",
    "features.item_id_min_events=1",
    "training={epochs: 2, model: gesr}",
    "models.gesr={width: 8, id_width: 8, category_width: 4, user_category_width: 2, attention_layers: 1}",
    "histories.window_days=21",
    "features.item=[{name: product_subclass, kind: categorical}, {name: topics, kind: multi}, "
    "{name: price, kind: numeric}]",
    "features.item_statistics=[{name: buyers_7d, kind: users, window_days: 7}, "
    "{name: loyal, kind: repeat_share, transform: none}]",
    "features.user=[{name: age_group, kind: categorical}, {name: likes, kind: multi}]",
    "features.event_signals=[{name: cheap, kind: below_share, share: 1.0, of: price}, "
    "{name: since, kind: days_since_same}]",
    "features.hard_match=[{history: topics, candidate: topics, window_days: 7, actions: [buy]}]",
)


def learned(spark: SparkSession, root: Path, storage: Path) -> dict[str, Any]:
    """Run the jobs into `storage`, and return candidates, impressions and the bytes of what was learned."""
    extra = (*SMALL, f"storage={{checkpoints: {storage}/c, item_states: {storage}/i, training_sets: {storage}/t}}")
    args = ["--ds", DS, "--env", "local"]
    for override in toy_overrides(root, *extra):
        args += ["--set", override]
    build_candidates.main([*args, "--impressions"])
    train.main(args)
    export_items.main(args)
    config = toy_config(root, *extra)
    found: dict[str, Any] = {
        role.value: sorted(map(repr, read_table(spark, config.table(role)).collect()))
        for role in (Role.CANDIDATES, Role.IMPRESSIONS)
    }
    # Table versions stand in provenance.json and in the names of training sets alone; seconds in log.jsonl.
    for folder in (storage / "c", storage / "i"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".safetensors", ".json", ".arrow") and path.name != "provenance.json":
                found[str(path.relative_to(storage))] = path.read_bytes()
    return found


def test_events_from_the_request_time_on_change_no_byte(spark: SparkSession, tmp_path: Path) -> None:
    config = toy_config(tmp_path, *SMALL)
    write_toy_inputs(spark, config, candidates=[])
    shutil.rmtree(config.table(Role.CANDIDATES).location)
    before = learned(spark, tmp_path, tmp_path / "before")

    cut = request_time(DS)
    table = DeltaTable.forPath(spark, config.table(Role.EVENTS).location)
    later = table.toDF().where(f"event_ts >= timestamp_micros({round(cut.timestamp()) * 1_000_000})")
    assert later.count() > 0
    table.delete("ds >= '2024-03-10'")
    day = dt.timedelta(days=1)
    altered = [(user, user % 9 + 1, cut + (user % 6) * day, "buy", 7.0, DS) for user in range(60)]
    write_rows(spark, config, Role.EVENTS, altered)
    for role in (Role.CANDIDATES, Role.IMPRESSIONS):
        shutil.rmtree(config.table(role).location)

    after = learned(spark, tmp_path, tmp_path / "after")
    assert sorted(after) == sorted(before)
    assert any(name.endswith("model.safetensors") for name in before)
    assert any(name.endswith("states.safetensors") for name in before)
    changed = [name for name in before if before[name] != after[name]]
    assert changed == []
