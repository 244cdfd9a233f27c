"""The training set of a day: labelled request rows and item tables, from Delta to a folder of Parquet. Driver only.

    impressions + events + items + users --> train/, validation/ (request rows), items/<ds>.parquet, item_events.parquet

The folder is a function of the input tables' versions and of the configuration, and is named by them: the same inputs
find it there and write nothing.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config, FeaturesConfig, list_names
from gesr_core.content import json_bytes
from gesr_core.dates import split_dates
from gesr_core.io.tables import one_ds, read_input, table_detail, table_version
from gesr_core.join.histories import histories_at
from gesr_core.join.items import before, items_at
from gesr_core.join.requests import training_requests, users_at
from gesr_core.names import Col, Role

log = logging.getLogger("train")

TRAIN, VALIDATION, ITEMS, ITEM_EVENTS, MANIFEST = (
    "train",
    "validation",
    "items",
    "item_events.parquet",
    "manifest.json",
)
# A constant, not the number of shuffle partitions: the order of the rows must not depend on the cluster.
_FILES: Final = 8
_ROLES: Final = (Role.EVENTS, Role.ITEMS, Role.USERS, Role.IMPRESSIONS)


@dataclass(frozen=True)
class TrainingInputs:
    """The pinned inputs of a training set, and the folder that belongs to them."""

    ds: str
    train_dates: tuple[str, ...]
    validation_date: str
    tables: Mapping[Role, DataFrame]
    folder: Path

    @property
    def exists(self) -> bool:
        """Whether the set was written already."""
        return (self.folder / MANIFEST).is_file()


def pin_inputs(spark: SparkSession, config: Config, *, ds: str) -> TrainingInputs:
    """Pin the newest version of each input table, and choose the dates to train and to validate on.

    Raises:
        InputError: a table or a column is missing, or `impressions` has too few dates.
    """
    tasks = [task.name for task in config.labels.tasks]
    features = config.features
    wanted: dict[Role, dict[str, Sequence[str]]] = {
        Role.EVENTS: {},
        Role.ITEMS: {"features": [f.name for f in features.item], "lists": list_names(features.item)},
        Role.USERS: {"features": [f.name for f in features.user], "lists": list_names(features.user)},
        Role.IMPRESSIONS: {"tasks": tasks, "features": [Col.SAMPLING_RATE, Col.SAMPLING_WEIGHT, Col.EXPOSED]},
    }
    versions = {role: table_version(spark, config.table(role)) for role in _ROLES}
    ids = {role: table_detail(spark, config.table(role)).id for role in _ROLES}
    tables = {role: read_input(spark, config.table(role), version=versions[role], **wanted[role]) for role in _ROLES}
    rows = tables[Role.IMPRESSIONS].select(F.col(Col.DS).cast("string").alias(Col.DS)).distinct().collect()
    train_dates, validation_date = split_dates(
        [row[Col.DS] for row in rows], ds=ds, window_days=config.labels.window_days
    )
    sections = config.model_dump(mode="json", include={"features", "labels", "histories"})
    pinned = [[role.value, ids[role], versions[role]] for role in _ROLES]
    key = hashlib.sha256(json_bytes([ds, train_dates, validation_date, pinned, sections])).hexdigest()[:16]
    folder = config.folder("training_sets") / f"{ds}-{key}"
    return TrainingInputs(ds, tuple(train_dates), validation_date, tables, folder)


def write_training_set(inputs: TrainingInputs, config: Config) -> None:
    """Write the folder: into a temporary one first, so that there is never half of it."""
    inputs.folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".writing-", dir=inputs.folder.parent))
    try:
        dates = [*inputs.train_dates, inputs.validation_date]
        _write_items(inputs, config, draft, dates)
        _write_requests(inputs, config, draft, dates)
        facts = {"ds": inputs.ds, "train_dates": inputs.train_dates, "validation_date": inputs.validation_date}
        (draft / MANIFEST).write_bytes(json_bytes({**facts, "content_sha256": content_sha256(draft)}))
        draft.chmod(0o755)
        try:
            draft.rename(inputs.folder)
        except OSError:
            # Another run of the same inputs was quicker: its rows are the same.
            if not inputs.exists:
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def content_sha256(folder: Path) -> str:
    """Return a hash of the rows of all Parquet files, in order; how Parquet wrote them does not matter."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet")):
        # A part file's name holds a random id.
        digest.update(str(path.parent.relative_to(folder)).encode())
        table = pq.read_table(path).combine_chunks().replace_schema_metadata()
        with pa.ipc.new_stream(_HashSink(digest), table.schema) as writer:
            writer.write_table(table)
    return digest.hexdigest()


def item_table(items: DataFrame, events: DataFrame, *, ds: str, features: FeaturesConfig) -> pa.Table:
    """Return the item table as of `ds`: item_id, `item_key` for STRING ids, declared features and statistics."""
    df = items_at(items, events, ds=ds, features=features)
    if df.schema[Col.ITEM_ID].dataType.simpleString() == "string":
        df = df.withColumn(Col.ITEM_KEY, F.xxhash64(Col.ITEM_ID))
    return df.toArrow().sort_by(Col.ITEM_ID)


def _write_items(inputs: TrainingInputs, config: Config, draft: Path, dates: Sequence[str]) -> None:
    (draft / ITEMS).mkdir()
    items, events = inputs.tables[Role.ITEMS], inputs.tables[Role.EVENTS]

    def write(ds: str) -> None:
        pq.write_table(item_table(items, events, ds=ds, features=config.features), draft / ITEMS / f"{ds}.parquet")

    # Small jobs, each of which waits for its plan longer than for its rows: side by side.
    with ThreadPoolExecutor(items.sparkSession.sparkContext.defaultParallelism) as threads:
        list(threads.map(write, dates))
    known = events.where(before(Col.EVENT_TS, inputs.validation_date)).where(F.col(Col.ITEM_ID).isNotNull())
    counted = known.groupBy(Col.ITEM_ID).agg(F.count(F.lit(1)).alias("events"))
    pq.write_table(counted.toArrow().sort_by(Col.ITEM_ID), draft / ITEM_EVENTS)


def _write_requests(inputs: TrainingInputs, config: Config, draft: Path, dates: Sequence[str]) -> None:
    impressions = inputs.tables[Role.IMPRESSIONS]
    users_of = impressions.select(F.col(Col.DS).cast("string").alias(Col.DS), Col.USER_ID).distinct()
    histories = histories_at(
        inputs.tables[Role.EVENTS],
        users_of.where(F.col(Col.DS).isin(list(dates))),
        dates=dates,
        max_events=config.histories.max_events,
    ).persist()
    try:
        for name, of_dates in ((TRAIN, inputs.train_dates), (VALIDATION, (inputs.validation_date,))):
            parts = [_requests(inputs, histories, config, ds) for ds in of_dates]
            rows = parts[0]
            for part in parts[1:]:
                rows = rows.unionByName(part)
            _write_shuffled(rows, draft / name)
    finally:
        histories.unpersist()


def _requests(inputs: TrainingInputs, histories: DataFrame, config: Config, ds: str) -> DataFrame:
    user_features = [feature.name for feature in config.features.user]
    return training_requests(
        one_ds(inputs.tables[Role.IMPRESSIONS], ds),
        histories.where(F.col(Col.DS) == ds).drop(Col.DS),
        users_at(inputs.tables[Role.USERS], ds=ds, features=user_features),
        ds=ds,
        history_window_days=config.histories.window_days,
        tasks=[task.name for task in config.labels.tasks],
        user_features=user_features,
    )


def _write_shuffled(rows: DataFrame, folder: Path) -> None:
    """Write rows in the order of a hash: users and dates mix, and the order is a function of the rows alone."""
    place = F.xxhash64(Col.DS, Col.USER_ID)
    shuffled = rows.repartition(_FILES, place).sortWithinPartitions(place, Col.DS, Col.USER_ID)
    # As a URI: a plain path would be taken for one of the cluster's default file system.
    shuffled.write.mode("error").parquet(folder.as_uri())


class _HashSink:
    """A file that only feeds a hash."""

    def __init__(self, digest: Any) -> None:
        self.digest, self.closed = digest, False

    def write(self, data: bytes) -> int:
        """Hash the bytes."""
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""
