"""Training told to MLflow: a store on disk through the real client, a server that is not there, a missing library."""

from __future__ import annotations

import importlib.util
import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from gesr_core.errors import ConfigurationError
from gesr_core.training.tracking import CHECKPOINT_TAG, INPUTS_TAG
from gesr_core.training.trainer import open_training_set, train_checkpoint
from jobs import train as train_job
from tests.training_sets import toy_config, write_toy_set

NEEDS_MLFLOW = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")


def train(folder: Path, *overrides: str) -> Path:
    if not (folder / "set").exists():
        write_toy_set(folder / "set")
    data = open_training_set(folder / "set", reader="arrow")
    return train_checkpoint(data, toy_config(folder, *overrides), model_name="two_tower")


def store(folder: Path) -> list[str]:
    return ["training.mlflow_experiment=toy", f"training.mlflow_tracking_uri=file://{folder}/mlruns"]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    # The skinny package has servers and this store only, and wants to hear that a folder is meant.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"file://{tmp_path}/mlruns")


def runs(client: Any) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name("toy").experiment_id]))


@NEEDS_MLFLOW
def test_mlflow_gets_parameters_metrics_and_the_checkpoint(tmp_path: Path, client: Any) -> None:
    path = train(tmp_path, *store(tmp_path))
    metrics = json.loads((path / "manifest.json").read_bytes())["metrics"]
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert run.data.tags[CHECKPOINT_TAG] == path.name
    assert run.data.params["model_name"] == "two_tower"
    assert run.data.params["model.width"] == "8"
    assert run.data.params["training.epochs"] == "2"
    assert run.data.params["training.precision"] == "fp32"
    history = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "ne"))
    assert history == [(epoch["epoch"], epoch["ne"]) for epoch in metrics["epochs"]]
    assert run.data.metrics["auc_bought"] == metrics["epochs"][-1]["auc_bought"]
    assert run.data.metrics["catch_up_loss"] == metrics["catch_up_loss"]
    # Who is told has no part in what is trained.
    assert train(tmp_path / "untold").name == path.name


@NEEDS_MLFLOW
def test_a_resumed_training_goes_on_in_its_run(tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(name: str) -> None:
        if name == "in_epoch_2":
            raise RuntimeError("the end of the process")

    with monkeypatch.context() as patch:
        patch.setattr("gesr_core.training.loop.reach", stop)
        with pytest.raises(RuntimeError, match="the end of the process"):
            train(tmp_path, *store(tmp_path))
    (begun,) = runs(client)
    assert begun.info.status == "RUNNING"
    path = train(tmp_path, *store(tmp_path))
    (run,) = runs(client)
    assert run.data.tags[INPUTS_TAG] == begun.data.tags[INPUTS_TAG]
    assert run.data.tags[CHECKPOINT_TAG] == path.name
    assert sorted(point.step for point in client.get_metric_history(run.info.run_id, "loss")) == [1, 2]


@NEEDS_MLFLOW
def test_a_server_that_does_not_answer_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unheard:
        # Bound and not listening: a connection is refused.
        unheard.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with caplog.at_level(logging.WARNING, logger="train"):
            path = train(tmp_path, "training.mlflow_experiment=toy", f"training.mlflow_tracking_uri={uri}")
    assert path.name == train(tmp_path / "untold").name
    (warning,) = [record.message for record in caplog.records if record.name == "train"]
    assert f"MLflow ({uri}) failed" in warning
    assert [json.loads(line)["epoch"] for line in (path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_a_missing_library_is_told_before_spark_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    # find_spec says None of what stands here as None.
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr(train_job, "open_session", lambda *_, **__: pytest.fail("a session was opened"))
    with pytest.raises(ConfigurationError, match=r"mlflow is not installed: pip install mlflow-skinny"):
        train_job.main(["--ds", "2001-02-21", "--set", "training.mlflow_experiment=toy"])


def test_a_tracking_uri_without_an_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="mlflow_experiment, which switches MLflow on, is not"):
        toy_config(tmp_path, "training.mlflow_tracking_uri=http://mlflow.example")
