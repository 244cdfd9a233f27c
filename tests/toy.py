"""A toy world for the Spark tests: a few users, items and events, and an untrained checkpoint. Small and seeded."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import Config, load_config
from gesr_core.model.build import build_model
from gesr_core.names import Role, user_feature
from gesr_core.schema import written_columns
from gesr_core.sink.tables import append, create_table
from gesr_core.training.checkpoint import save_checkpoint
from gesr_core.training.features import fit_feature_space, fit_requests

DS = "2024-03-10"
USERS, ITEMS = 24, 40


def toy_overrides(root: Path, *extra: str) -> list[str]:
    """`--set` values that put everything under `root` and make everything small."""
    return [
        f"tables.root={root}",
        f"storage={{checkpoints: {root}/checkpoints, item_states: {root}/states, training_sets: {root}/training}}",
        "scoring.shards=6",
        "scoring.shards_per_wave=2",
        "scoring.top_k=5",
        "scoring.max_candidates_per_request=7",
        "scoring.history_buckets=[2, 4, 8, 64]",
        "scoring.candidate_buckets=[4, 8]",
        "scoring.batch_pairs=32",
        "gate.max_quarantined_share=0.5",
        *extra,
    ]


def toy_config(root: Path, *extra: str) -> Config:
    """The `local` environment under `root`."""
    return load_config("local", overrides=toy_overrides(root, *extra))


def write_rows(spark: SparkSession, config: Config, role: Role, rows: Sequence[tuple[Any, ...]], **types: Any) -> None:
    """Append rows to a table in its contract's columns, creating it when it is missing."""
    columns = written_columns(role, **types)
    create_table(spark, config.table(role), columns)
    schema = ", ".join(f"{name} {type_}" for name, type_ in columns.items())
    append(spark.createDataFrame(list(rows), schema), config.table(role))


def write_plain(df: DataFrame, config: Config, role: Role) -> None:
    """Write a table that the user brings."""
    df.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(config.table(role).location)


def toy_events(seed: int = 5) -> list[tuple[Any, ...]]:
    """A month of events before and a week after DS; user 0 has none before it."""
    rng = random.Random(seed)
    start = dt.datetime(2024, 2, 10, tzinfo=dt.timezone.utc)
    rows = []
    for user in range(USERS):
        for _ in range(rng.randint(1, 12)):
            when = start + dt.timedelta(days=rng.randint(0, 35), seconds=rng.randint(0, 86_399))
            if user == 0:
                when = dt.datetime(2024, 3, 11, tzinfo=dt.timezone.utc)
            item, value = rng.randint(1, ITEMS), float(rng.randint(1, 90))
            rows.append((user, item, when, "buy", value, when.strftime("%Y-%m-%d")))
    return rows


def toy_candidates(seed: int = 6) -> list[tuple[Any, ...]]:
    """Candidates of DS for all users; some have more than one request's worth."""
    rng = random.Random(seed)
    rows = []
    for user in range(USERS):
        items = rng.sample(range(1, ITEMS + 1), rng.choice([1, 3, 6, 12, 20]))
        rows.append((DS, user, [(item, rng.choice(["own", "popular"]), rng.random()) for item in items]))
    return rows


def write_toy_inputs(spark: SparkSession, config: Config) -> None:
    """Write events, items, users and candidates."""
    write_rows(spark, config, Role.EVENTS, toy_events())
    write_rows(spark, config, Role.CANDIDATES, toy_candidates())
    items = [(item, f"class {item % 7}") for item in range(1, ITEMS + 1)]
    write_plain(spark.createDataFrame(items, "item_id bigint, product_subclass string"), config, Role.ITEMS)
    users = [(user, "ABC"[user % 3], None if user % 5 == 0 else "115") for user in range(USERS)]
    write_plain(spark.createDataFrame(users, "user_id bigint, age_group string, pin_code string"), config, Role.USERS)


def write_toy_checkpoint(config: Config, *, model: str = "gesr", seed: int = 1) -> Path:
    """Save an untrained checkpoint whose feature space knows most of the toy items."""
    known = list(range(1, ITEMS - 5))
    items: dict[str, Any] = {"item_id": known, "product_subclass": [f"class {item % 7}" for item in known]}
    for place, statistic in enumerate(config.features.item_statistics):
        items[statistic.name] = [float((item * (place + 3)) % 11) for item in known]
    requests = pa.RecordBatch.from_pydict(
        {
            user_feature("age_group"): ["A", "B", "C"],
            user_feature("pin_code"): ["115", None, "221"],
            "history_action": pa.array([["buy"], [], ["buy"]], pa.list_(pa.string())),
        }
    )
    space = fit_feature_space(
        config.features,
        items=pa.table(items),
        item_events=pa.table({"item_id": known, "events": [9] * len(known)}),
        requests=fit_requests([requests], config.features),
        max_history=config.histories.max_events,
        task_logits={task.name: -2.0 for task in config.labels.tasks},
    )
    torch.manual_seed(seed)
    network = build_model(config.models[model], space.sizes)
    # Heads that start at zero would leave parts of the model out of every score.
    weights = {
        name: tensor + 0.1 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    return save_checkpoint(
        config.folder("checkpoints"),
        model_name=model,
        model_config=config.models[model],
        weights=weights,
        features=space,
        facts={"seed": seed},
    )
