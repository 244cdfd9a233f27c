"""A training set and a configuration to a checkpoint. Driver only; no JVM: all that it reads is a folder of Parquet."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from gesr_core.config import Config
from gesr_core.content import replace_file
from gesr_core.model.build import build_model
from gesr_core.names import Col, label
from gesr_core.training.checkpoint import LATEST, save_checkpoint
from gesr_core.training.data import encode_training_items
from gesr_core.training.features import FeatureSpace, fit_feature_space, fit_requests
from gesr_core.training.loop import TrainingData, TrainingResult, TrainingSettings, train
from gesr_core.training.readers import RequestReader, open_requests

log = logging.getLogger("train")

_LIBRARIES: Final = ("torch", "numpy", "pyarrow", "safetensors")


@dataclass(frozen=True)
class TrainingSet:
    """A folder that `training_set.py` wrote, opened."""

    folder: Path
    manifest: Mapping[str, Any]
    training: RequestReader
    validation: RequestReader
    items: Mapping[str, pa.Table]
    item_events: pa.Table

    @property
    def train_items(self) -> pa.Table:
        """The item tables of the training dates, one after the other."""
        return pa.concat_tables([self.items[ds] for ds in self.manifest["train_dates"]])


def open_training_set(folder: Path, *, reader: str) -> TrainingSet:
    """Open a training set with the configured reader.

    Raises:
        InputError: the folder has no request rows.
        ConfigurationError: the reader does not run on the installed versions.
    """
    return TrainingSet(
        folder=folder,
        manifest=json.loads((folder / "manifest.json").read_bytes()),
        training=open_requests(reader, folder / "train"),
        validation=open_requests(reader, folder / "validation"),
        items={path.stem: pq.read_table(path) for path in sorted((folder / "items").glob("*.parquet"))},
        item_events=pq.read_table(folder / "item_events.parquet"),
    )


def train_checkpoint(data: TrainingSet, config: Config, *, model_name: str) -> Path:
    """Train a model of the configuration and return its checkpoint's folder.

    A checkpoint of the same data, configuration and libraries is found again and not trained anew.
    """
    root = config.folder("checkpoints")
    inputs = _inputs(data, config, model_name)
    if (found := find_checkpoint(root / model_name, inputs)) is not None:
        replace_file(root / model_name / LATEST, f"{found.name}\n".encode())
        log.info("%s was trained already on the same data and configuration: %s", model_name, found)
        return found
    features = fit_features(data, config)
    log.info(
        "%s: %d training requests of %s to %s, %d validation requests of %s; %d item ids known",
        model_name, data.training.rows, data.manifest["train_dates"][0], data.manifest["train_dates"][-1],
        data.validation.rows, data.manifest["validation_date"], len(features.item_ids),
    )  # fmt: skip
    torch.manual_seed(config.training.seed)
    model = build_model(config.models[model_name], features.sizes)
    result = train(model, training_data(data, features), settings=training_settings(config))
    return save_checkpoint(
        root,
        model_name=model_name,
        model_config=config.models[model_name],
        weights=result.weights,
        features=features,
        facts={"inputs": inputs, "metrics": _metrics(result)},
        log=_log_lines(result),
    )


def find_checkpoint(folder: Path, inputs: Mapping[str, Any]) -> Path | None:
    """Return a checkpoint that was trained from exactly these inputs, if there is one."""
    wanted = json.loads(json.dumps(inputs))
    for path in sorted(folder.glob("*/manifest.json")):
        if json.loads(path.read_bytes()).get("inputs") == wanted:
            return path.parent
    return None


def fit_features(data: TrainingSet, config: Config) -> FeatureSpace:
    """Fit vocabularies, statistics and base rates on the training dates."""
    tasks = [task.name for task in config.labels.tasks]
    return fit_feature_space(
        config.features,
        items=data.train_items,
        item_events=data.item_events,
        requests=fit_requests(data.training.batches(), config.features),
        max_history=config.histories.max_events,
        task_logits=base_logits(data.training.batches(), tasks),
    )


def base_logits(batches: Iterable[pa.RecordBatch], tasks: Sequence[str]) -> dict[str, float]:
    """Return the logit of each task's base rate among the exposed pairs, as if none had been thinned out.

    One label more of each kind keeps it finite.
    """
    positives, total = dict.fromkeys(tasks, 0), 0.0
    for batch in batches:
        exposed = batch.column(Col.EXPOSED).flatten()
        rates = pc.cast(batch.column(Col.SAMPLING_RATE).flatten(), pa.float64())
        labelled = pa.scalar(False)
        for task in tasks:
            has_label = pc.and_(pc.greater(batch.column(label(task)).flatten(), 0), exposed)
            positives[task] += pc.sum(has_label).as_py() or 0
            labelled = pc.or_(labelled, has_label)
        weight = pc.if_else(labelled, 1.0, pc.divide(1.0, rates))
        total += pc.sum(pc.if_else(exposed, weight, 0.0)).as_py() or 0.0
    return {task: math.log((count + 1) / (max(total - count, 0) + 1)) for task, count in positives.items()}


def training_data(data: TrainingSet, features: FeatureSpace) -> TrainingData:
    """Return what the loop reads of a training set."""
    items = encode_training_items(data.items, features)
    newest_items = items.of(max(data.manifest["train_dates"]))
    return TrainingData(data.training, data.validation, items, newest_items, features)


def training_settings(config: Config) -> TrainingSettings:
    """Return what the loop needs of the configuration."""
    section = config.training
    return TrainingSettings(
        epochs=section.epochs,
        patience=section.patience,
        batch_requests=section.batch_requests,
        learning_rate=section.learning_rate,
        catch_up_rate=section.catch_up_rate,
        weight_decay=section.weight_decay,
        seed=section.seed,
        threads=section.threads,
        unexposed_weight=section.unexposed_weight,
        loss_weights=tuple(task.loss_weight for task in config.labels.tasks),
        score_weights=tuple(task.score_weight for task in config.labels.tasks),
    )


def _inputs(data: TrainingSet, config: Config, model_name: str) -> dict[str, Any]:
    """All that the weights follow from; where tables lie and which reader reads them is not among it."""
    sections = config.model_dump(mode="json", include={"features", "labels", "histories", "training"})
    for name in ("reader", "model"):
        sections["training"].pop(name)
    return {
        "training_set": dict(data.manifest),
        "configuration": sections,
        "model": config.models[model_name].model_dump(mode="json"),
        "libraries": {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        "threads": config.training.threads or torch.get_num_threads(),
    }


def _metrics(result: TrainingResult) -> dict[str, Any]:
    """What was measured: the epochs' values are those of the weights before they caught up."""
    return {"best_epoch": result.best_epoch, "epochs": result.epochs, "catch_up_loss": result.catch_up_loss}


def _log_lines(result: TrainingResult) -> list[dict[str, Any]]:
    return [{**epoch, "elapsed_s": s} for epoch, s in zip(result.epochs, result.epoch_s, strict=True)]
