"""A training in MLflow, where one is configured: parameters, metrics per epoch, the checkpoint's files. No JVM.

Whatever MLflow does, training goes on: its first failure is warned about, and then it is left alone for the rest of the
training. Nothing is lost by that: every number also stands in `log.jsonl` and in the checkpoint's manifest.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gesr_core.config import TrainingConfig
from gesr_core.content import sha256_of
from gesr_core.errors import ConfigurationError
from gesr_core.training.checkpoint import MANIFEST

log = logging.getLogger("train")

INPUTS_TAG: Final = "gesr.inputs"
CHECKPOINT_TAG: Final = "gesr.checkpoint"
# Of the checkpoint's manifest, which holds the hashes of the other files. A run that has it has the files too.
SHA256_TAG: Final = "gesr.checkpoint_sha256"
# Where among a run's artifacts the checkpoint's folder is.
ARTIFACTS: Final = "checkpoint"
# MLflow's own are seven tries of two minutes, with pauses that double: too long to wait for a server that is down. And
# the job reports to the configured server and to nobody else.
_DEFAULTS: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def require_mlflow(*, asked_by: str, instead: str) -> None:
    """Refuse to go on without the library.

    Args:
        asked_by: what needs it.
        instead: what to do where it shall not be installed.

    Raises:
        ConfigurationError: names the remedy.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigurationError(f"{asked_by}, but mlflow is not installed: pip install mlflow-skinny, or {instead}")


def mlflow_client(section: TrainingConfig) -> Any:
    """Return a client of the configured tracking server and its registry, which gives up early on one that is down."""
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    # Only here: importing it takes seconds, and it is an extra.
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=section.mlflow_tracking_uri)


def server_name(section: TrainingConfig) -> str:
    """Return what messages call the server."""
    return section.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "its default tracking server"


def experiment_id(client: Any, section: TrainingConfig) -> str:
    """Return the configured experiment's id; one that is not there is made."""
    name = str(section.mlflow_experiment)
    known = client.get_experiment_by_name(name)
    return str(known.experiment_id if known else client.create_experiment(name))


def log_checkpoint(client: Any, run_id: str, checkpoint: Path) -> None:
    """Copy a checkpoint's folder to a run's artifacts; then, as a sign that all of it is there, tag its hash."""
    client.log_artifacts(run_id, str(checkpoint), ARTIFACTS)
    client.log_text(run_id, _mlmodel(run_id, checkpoint.name), f"{ARTIFACTS}/MLmodel")
    client.set_tag(run_id, CHECKPOINT_TAG, checkpoint.name)
    client.set_tag(run_id, SHA256_TAG, sha256_of(checkpoint / MANIFEST))


def _mlmodel(run_id: str, checkpoint_id: str) -> str:
    """Return the file that makes a folder a model to MLflow; Unity Catalog takes none without it and its signature.

    It has a flavour of ours alone: nothing of MLflow loads it, and nothing is pickled.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    given = [ColSpec(DataType.string, "user_id"), ColSpec(Array(DataType.string), "candidates")]
    ranked = [ColSpec(DataType.string, "user_id"), ColSpec(Array(DataType.string), "ranked")]
    signature = ModelSignature(inputs=Schema(given), outputs=Schema(ranked))
    flavors = {"gesr": {"checkpoint_id": checkpoint_id}}
    return str(Model(artifact_path=ARTIFACTS, run_id=run_id, flavors=flavors, signature=signature).to_yaml())


class Tracking:
    """One training as a run of an MLflow experiment; a training that is resumed goes on in the run that it began."""

    def __init__(self, section: TrainingConfig, *, key: str, name: str, parameters: Mapping[str, Any]) -> None:
        """Find or begin the run.

        Args:
            section: names the experiment, and maybe the tracking server.
            key: the hash of the training's inputs, by which a resumed training knows its run.
            name: the run's name.
            parameters: what to show as the run's parameters.
        """
        self._where = server_name(section)
        self._broken = False
        self._logged = 0
        self._try(lambda: self._begin(section, key=key, name=name, parameters=parameters))

    def epochs(self, measured: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs, of all so far, that the run does not have."""
        self._try(lambda: self._log_epochs(measured))

    def finish(self, checkpoint: Path, *, summary: Mapping[str, float | None]) -> None:
        """Log the checkpoint's files and hash, and end the run."""
        self._try(lambda: self._end(checkpoint, summary=summary))

    def _begin(self, section: TrainingConfig, *, key: str, name: str, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        client = self._client = mlflow_client(section)
        experiment = experiment_id(client, section)
        unfinished = f"tags.`{INPUTS_TAG}` = '{key}' and attributes.status = 'RUNNING'"
        if begun := client.search_runs([experiment], filter_string=unfinished):
            self._run_id = begun[0].info.run_id
            self._logged = max((point.step for point in client.get_metric_history(self._run_id, "loss")), default=0)
            return
        self._run_id = client.create_run(experiment, run_name=name, tags={INPUTS_TAG: key}).info.run_id
        client.log_batch(self._run_id, params=[Param(name, str(value)) for name, value in parameters.items()])

    def _log_epochs(self, measured: Sequence[Mapping[str, Any]]) -> None:
        for epoch in measured[self._logged :]:
            self._log_metrics({name: value for name, value in epoch.items() if name != "epoch"}, step=epoch["epoch"])
        self._logged = len(measured)

    def _end(self, checkpoint: Path, *, summary: Mapping[str, float | None]) -> None:
        self._log_metrics({name: value for name, value in summary.items() if value is not None}, step=self._logged)
        log_checkpoint(self._client, self._run_id, checkpoint)
        self._client.set_terminated(self._run_id)

    def _log_metrics(self, values: Mapping[str, float], *, step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, step) for name, value in values.items() if math.isfinite(value)]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _try(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as err:
            # A store's, a server's and a network's failures have no class in common.
            self._broken = True
            reason = str(err).splitlines()[0] if str(err) else type(err).__name__
            log.warning(
                "MLflow (%s) failed and is left alone from here on; log.jsonl and the checkpoint have every number: %s",
                self._where,
                reason,
            )
