"""A toy world for the Spark tests: a few users, items and events, and an untrained checkpoint. Small and seeded."""

from __future__ import annotations

import datetime as dt
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
from jobs import export_items, update_histories

DS = "2024-03-10"
_BUILT: dict[str, Path] = {}
USERS, ITEMS = 24, 40


@cache
def _built_in() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with the process."""
    return tempfile.TemporaryDirectory(prefix="toys-")


def toy_overrides(root: Path, *extra: str) -> list[str]:
    """`--set` values that put everything under `root` and make everything small."""
    return [
        f"tables.root={root}",
        f"storage={{checkpoints: {root}/checkpoints, item_states: {root}/states, training_sets: {root}/training}}",
        f"storage.reports={root}/reports",
        "scoring.shards=6",
        "scoring.shards_per_wave=2",
        "scoring.top_k=5",
        "scoring.max_candidates_per_request=7",
        "scoring.history_buckets=[2, 4, 8, 64]",
        "scoring.candidate_buckets=[4, 8]",
        "scoring.batch_pairs=32",
        "gate.max_quarantined_share=0.5",
        "gate.max_unknown_share=0.5",
        "gate.max_empty_history_share=1.0",
        # Every part of gesr is scored.
        "models.gesr.cross_width=8",
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


def as_text(rows: Sequence[tuple[Any, ...]], *, user: int, item: int | None) -> list[tuple[Any, ...]]:
    """Turn ids into texts that sort as the numbers do; `user` and `item` are the places of the ids in a row."""
    texts = []
    for row in rows:
        values = list(row)
        values[user] = user_text(values[user])
        if item is not None:
            values[item] = item_text(values[item])
        texts.append(tuple(values))
    return texts


def item_topics(item: int) -> list[str | None] | None:
    """Up to three topics of an item; some have none."""
    return None if item % 9 == 0 else [None, f"topic {item % 3}", f"topic {item % 5}"][: item % 4]


def user_text(user: int) -> str:
    return f"u{user:03d}"


def item_text(item: int) -> str:
    return f"i{item:03d}"


def write_toy_inputs(
    spark: SparkSession, config: Config, *, candidates: Sequence[tuple[Any, ...]], string_ids: bool = False
) -> None:
    """Write events, items, users and candidates."""
    events = toy_events()
    items: list[tuple[Any, ...]] = [
        (item, f"class {item % 7}", item_topics(item), float(item)) for item in range(1, ITEMS + 1)
    ]
    users: list[tuple[Any, ...]] = [
        (u, "ABC"[u % 3], None if u % 5 == 0 else "115", [None, u % 4, 2**60 + u % 3][: u % 4]) for u in range(USERS)
    ]
    kind = "bigint"
    if string_ids:
        kind = "string"
        events, users = as_text(events, user=0, item=1), as_text(users, user=0, item=None)
        items = [(item_text(item), *rest) for item, *rest in items]
        candidates = [
            (ds, user_text(user), [(item_text(item), *rest) for item, *rest in retrieved])
            for ds, user, retrieved in candidates
        ]
    write_rows(spark, config, Role.EVENTS, events, user=kind, item=kind)
    write_rows(spark, config, Role.CANDIDATES, candidates, user=kind, item=kind)
    item_columns = f"item_id {kind}, product_subclass string, topics array<string>, price double"
    write_plain(spark.createDataFrame(items, item_columns), config, Role.ITEMS)
    columns = f"user_id {kind}, age_group string, pin_code string, likes array<bigint>"
    write_plain(spark.createDataFrame(users, columns), config, Role.USERS)


@dataclass(frozen=True)
class Toy:
    """A toy world under `root`: inputs, histories as of DS, an untrained checkpoint and its item states."""

    root: Path
    config: Config
    overrides: tuple[str, ...] = ()

    @staticmethod
    def build(
        spark: SparkSession,
        root: Path,
        *,
        candidates: Sequence[tuple[Any, ...]] | None = None,
        string_ids: bool = False,
        overrides: Sequence[str] = (),
    ) -> Toy:
        """Write everything that score_daily needs; `overrides` hold for every job in this world.

        Worlds that are alike are built once in a process, and copied: a Delta table is a folder like any other.
        """
        toy = Toy(root, toy_config(root, *overrides), tuple(overrides))
        rows = toy_candidates() if candidates is None else candidates
        alike = repr((rows, string_ids, tuple(overrides)))
        if alike not in _BUILT:
            _BUILT[alike] = Path(tempfile.mkdtemp(dir=_built_in().name))
            pattern = Toy(_BUILT[alike], toy_config(_BUILT[alike], *overrides), tuple(overrides))
            write_toy_inputs(spark, pattern.config, candidates=rows, string_ids=string_ids)
            update_histories.main(pattern.args(target=None))
            write_toy_checkpoint(pattern.config, string_ids=string_ids)
            pattern.export_items()
        shutil.copytree(_BUILT[alike], root, dirs_exist_ok=True)
        return toy

    def export_items(self, *, ds: str = DS) -> None:
        """Export the item states of the checkpoint for a day."""
        export_items.main(self.args(ds=ds, target=None))

    def settings(self, *overrides: str) -> list[str]:
        """The options that every job has, in this world."""
        values = toy_overrides(self.root, *self.overrides, *overrides)
        return ["--env", "local", *(word for value in values for word in ("--set", value))]

    def args(
        self,
        *overrides: str,
        ds: str = DS,
        target: str | None = "scores",
        checkpoint: str | None = None,
        replace: bool = False,
    ) -> list[str]:
        """The command line of a job in this world."""
        options = ["--ds", ds, *self.settings(*overrides)]
        options += ["--target", target] if target else []
        options += ["--checkpoint", checkpoint] if checkpoint else []
        return options + (["--replace"] if replace else [])


def write_toy_checkpoint(
    config: Config,
    *,
    model: str = "gesr",
    seed: int = 1,
    string_ids: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> Path:
    """Save an untrained checkpoint whose feature space knows most of the toy items; `inputs`: what else they were."""
    numbers = range(1, ITEMS - 5)
    known = [item_text(item) for item in numbers] if string_ids else list(numbers)
    items: dict[str, Any] = {"item_id": known, "product_subclass": [f"class {item % 7}" for item in numbers]}
    items |= {"topics": [item_topics(item) for item in numbers], "price": [float(item) for item in numbers]}
    for place, statistic in enumerate(config.features.item_statistics):
        items[statistic.name] = [float((item * (place + 3)) % 11) for item in numbers]
    requests = pa.RecordBatch.from_pydict(
        {
            user_feature("age_group"): ["A", "B", "C"],
            user_feature("pin_code"): ["115", None, "221"],
            user_feature("likes"): [["0", "1"], [], [str(2**60 + 1)]],
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
        history_window_days=config.histories.window_days,
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
        facts={"inputs": _inputs(config, inputs or {})},
    )


def _inputs(config: Config, others: Mapping[str, Any]) -> dict[str, Any]:
    configuration = {"features": config.features.model_dump(mode="json"), **others.get("configuration", {})}
    return {**others, "configuration": configuration}
