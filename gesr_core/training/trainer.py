"""A training set and a configuration to a checkpoint. All that it reads is a folder of Parquet.

Runs on the driver, without a JVM where one process trains; several are started through the session that is passed.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from gesr_core.config import Config
from gesr_core.errors import GesrError
from gesr_core.model.build import build_model
from gesr_core.names import Col, label
from gesr_core.training.checkpoint import FORMAT_VERSION, make_latest, save_checkpoint
from gesr_core.training.data import encode_training_items
from gesr_core.training.features import FeatureSpace, fit_feature_space, fit_requests
from gesr_core.training.loop import TrainingData, TrainingResult, TrainingSettings, log_lines, train
from gesr_core.training.processes import ALONE, Processes, choose_training_device, process_group, run_in_processes
from gesr_core.training.readers import RequestReader, open_requests, require_petastorm
from gesr_core.training.registry import register_checkpoint
from gesr_core.training.state import StateFolder, inputs_key
from gesr_core.training.tracking import Tracking, require_mlflow

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

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


def require_libraries(config: Config) -> None:
    """Refuse, before anything is read, what the configuration asks for and the environment lacks.

    Raises:
        ConfigurationError: names the library and the remedy.
    """
    if config.training.reader == "petastorm":
        require_petastorm()
    if config.training.mlflow_experiment is not None:
        require_mlflow(asked_by="training.mlflow_experiment is set", instead="set it to null")


def train_checkpoint(data: TrainingSet, config: Config, *, model_name: str, spark: SparkSession | None = None) -> Path:
    """Train a model of the configuration and return its checkpoint's folder.

    A checkpoint of the same data, configuration and libraries is found again and not trained anew; a training of the
    same that was killed is gone on with after its last finished epoch.

    Args:
        data: the training set.
        config: the resolved configuration.
        model_name: one of its models.
        spark: a live session, which several processes (`training.processes`) are started through.

    Raises:
        ConfigurationError: several processes and no session, a device that is not here, or a missing library.
    """
    require_libraries(config)
    device = choose_training_device(config.training, spark)
    inputs = training_inputs(data, config, model_name, device=device.type)
    folder = config.folder("checkpoints") / model_name
    if (found := find_checkpoint(folder, inputs)) is not None:
        StateFolder.of(folder, inputs).remove()
        make_latest(found)
        log.info("%s was trained already on the same data and configuration: %s", model_name, found)
        return _registered(found, config)
    if spark is None or config.training.processes == 1:
        processes = replace(ALONE, device=device)
        return _registered(_train_and_save(data, config, inputs, model_name=model_name, processes=processes), config)
    run_in_processes(spark, train_in_process, data.folder, config, inputs, model_name, training=config.training)
    trained = find_checkpoint(folder, inputs)
    if trained is None:
        raise GesrError(
            f"the training processes ended, but {folder} has no checkpoint of theirs: do all hosts share it?"
        )
    return _registered(trained, config)


def _registered(path: Path, config: Config) -> Path:
    """Register a checkpoint where that is configured; a registry that fails costs a warning, for it is trained."""
    if config.training.mlflow_model is not None:
        try:
            version = register_checkpoint(config, path)
            log.info("%s is version %s of %s in MLflow", path.name, version, config.training.mlflow_model)
        except GesrError as err:
            log.warning("%s is not registered; start the same training again to register it: %s", path.name, err)
    return path


def train_in_process(folder: Path, config: Config, inputs: Mapping[str, Any], model_name: str) -> None:
    """Train in one of several processes, which torchrun's environment variables tell apart.

    Returns nothing: TorchDistributor has all processes of a machine write what they return to one file.
    """
    with process_group(inputs["device"]) as processes:
        if processes.first:
            logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
        # What one has to say, the others would repeat.
        log.disabled = not processes.first
        data = open_training_set(folder, reader=config.training.reader)
        _train_and_save(data, config, inputs, model_name=model_name, processes=processes)


def _train_and_save(
    data: TrainingSet, config: Config, inputs: Mapping[str, Any], *, model_name: str, processes: Processes
) -> Path:
    """Train; the first process saves the checkpoint. Returns the model's folder in the others."""
    root = config.folder("checkpoints")
    state_folder = StateFolder.of(root / model_name, inputs)
    features = fit_features(data, config)
    log.info(
        "%s: %d training requests of %s to %s, %d validation requests of %s; %d item ids known",
        model_name, data.training.rows, data.manifest["train_dates"][0], data.manifest["train_dates"][-1],
        data.validation.rows, data.manifest["validation_date"], len(features.item_ids),
    )  # fmt: skip
    torch.manual_seed(config.training.seed)
    model = build_model(config.models[model_name], features.sizes)
    tracking = _tracking(config, inputs, model_name=model_name) if processes.first else None
    result = train(
        model,
        training_data(data, features),
        settings=replace(training_settings(config), threads=inputs["threads"]),
        processes=processes,
        folder=state_folder,
        on_epoch=tracking.epochs if tracking else None,
    )
    if not processes.first:
        return root / model_name
    path = save_checkpoint(
        root,
        model_name=model_name,
        model_config=config.models[model_name],
        weights=result.weights,
        features=features,
        facts={"inputs": inputs, "metrics": _metrics(result)},
        log=log_lines(result),
    )
    state_folder.remove()
    if tracking:
        tracking.finish(path, summary={"best_epoch": result.best_epoch, "catch_up_loss": result.catch_up_loss})
    return path


def _tracking(config: Config, inputs: Mapping[str, Any], *, model_name: str) -> Tracking | None:
    if config.training.mlflow_experiment is None:
        return None
    data = inputs["training_set"]
    parameters = {
        "model_name": model_name,
        "ds": data["ds"],
        "train_dates": ", ".join(data["train_dates"]),
        "validation_date": data["validation_date"],
        "device": inputs["device"],
        **{f"model.{name}": value for name, value in inputs["model"].items()},
        **{f"training.{name}": value for name, value in inputs["configuration"]["training"].items()},
        "training.threads": inputs["threads"],
    }
    return Tracking(config.training, key=inputs_key(inputs), name=model_name, parameters=parameters)


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
        history_window_days=config.histories.window_days,
        task_logits=base_logits(data.training.batches(), tasks),
    )


def base_logits(batches: Iterable[pa.RecordBatch], tasks: Sequence[str]) -> dict[str, float]:
    """Return the logit of each task's base rate among the exposed pairs, as if none had been thinned out.

    One label more of each kind keeps it finite.
    """
    positives, total = dict.fromkeys(tasks, 0.0), 0.0
    for batch in batches:
        exposed = batch.column(Col.EXPOSED).flatten()
        rates, weights = (
            pc.cast(batch.column(name).flatten(), pa.float64()) for name in (Col.SAMPLING_RATE, Col.SAMPLING_WEIGHT)
        )
        labelled = pa.scalar(False)
        for task in tasks:
            has_label = pc.and_(pc.greater(batch.column(label(task)).flatten(), 0), exposed)
            positives[task] += pc.sum(pc.if_else(has_label, weights, 0.0)).as_py() or 0.0
            labelled = pc.or_(labelled, has_label)
        weight = pc.multiply(weights, pc.if_else(labelled, 1.0, pc.divide(1.0, rates)))
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
        precision=section.precision,
        unexposed_weight=section.unexposed_weight,
        loss_weights=tuple(task.loss_weight for task in config.labels.tasks),
        score_weights=tuple(task.score_weight for task in config.labels.tasks),
    )


def training_inputs(data: TrainingSet, config: Config, model_name: str, *, device: str) -> dict[str, Any]:
    """All that the weights follow from; where tables lie, which reader reads and who is told is not among it."""
    sections = config.model_dump(mode="json", include={"features", "labels", "histories", "training"})
    for name in ("reader", "model", "device", "mlflow_experiment", "mlflow_tracking_uri", "mlflow_model"):
        sections["training"].pop(name)
    cores = torch.get_num_threads()
    return {
        # Code that gives a model other weights has another format: what older code trained is trained anew.
        "format_version": FORMAT_VERSION,
        "training_set": dict(data.manifest),
        "configuration": sections,
        "model": config.models[model_name].model_dump(mode="json"),
        "libraries": {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        "threads": config.training.threads or max(1, cores // config.training.processes),
        "device": device,
    }


def _metrics(result: TrainingResult) -> dict[str, Any]:
    """What was measured: the epochs' values are those of the weights before they caught up."""
    return {"best_epoch": result.best_epoch, "epochs": result.epochs, "catch_up_loss": result.catch_up_loss}
