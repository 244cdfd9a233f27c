"""Several processes train as one does: their shares add up, and so do their gradients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.sql import SparkSession
from torch import Tensor

from gesr_core.config import Config
from gesr_core.errors import ConfigurationError
from gesr_core.model.build import build_model
from gesr_core.training.checkpoint import Checkpoint, load_checkpoint
from gesr_core.training.data import decode_window, make_batch, windows
from gesr_core.training.loop import loss_of
from gesr_core.training.processes import ALONE, Processes, choose_training_device
from gesr_core.training.trainer import (
    fit_features,
    open_training_set,
    train_checkpoint,
    training_data,
    training_inputs,
    training_settings,
)
from tests.training_sets import toy_config, write_toy_set

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
# Batches of 59 requests and of 1: shares of 30 and 29, and of 1 and none. Dropout would draw other masks in each.
SETTINGS = ["training.batch_requests=59", "models.gesr.dropout=0", "models.two_tower.dropout=0"]
# Rounding differs by some 1e-7 of a gradient. Adam divides a gradient by its own size, so that where one is next to
# nothing, rounding decides a part of a step, which is at most the learning rate, 0.01: four steps in all, and one at
# half the rate. Seen: 1e-5. Unequal shares or divisors would move most weights by whole steps.
TOLERANCE = 1e-4
TRAIN = """
import json, sys
from pathlib import Path
from gesr_core.training.trainer import train_in_process
from tests.training_sets import toy_config

folder, inputs, model_name, *overrides = sys.argv[1:]
train_in_process(Path(folder) / "set", toy_config(Path(folder), *overrides), json.loads(inputs), model_name)
"""


def train(folder: Path, *overrides: str, model: str = "gesr", spark: SparkSession | None = None) -> Checkpoint:
    if not (folder / "set").exists():
        write_toy_set(folder / "set")
    data = open_training_set(folder / "set", reader="arrow")
    config = toy_config(folder, *SETTINGS, *overrides)
    return load_checkpoint(train_checkpoint(data, config, model_name=model, spark=spark))


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return checkpoint.build().state_dict()


def assert_alike(one: Checkpoint, other: Checkpoint) -> None:
    """Weights, losses and validation NE of two trainings differ by rounding alone."""
    expected = weights(other)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=TOLERANCE, msg=name)
    for name in ("loss", "ne"):
        values = [[epoch[name] for epoch in c.manifest["metrics"]["epochs"]] for c in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert one.manifest["metrics"]["catch_up_loss"] == pytest.approx(
        other.manifest["metrics"]["catch_up_loss"], rel=1e-4
    )


@pytest.mark.parametrize("model_name", ["gesr", "two_tower"])
def test_the_gradients_of_the_shares_add_up_to_those_of_the_batch(tmp_path: Path, model_name: str) -> None:
    config = toy_config(tmp_path, *SETTINGS)
    opened = open_training_set(write_toy_set(tmp_path / "set"), reader="arrow")
    data, settings = training_data(opened, fit_features(opened, config)), training_settings(config)
    jagged = decode_window(next(windows(data.training.batches(), rows=20)), items=data.items, features=data.features)
    batch = make_batch(jagged, torch.arange(20), features=data.features)
    model = build_model(config.models[model_name], data.features.sizes)

    def gradients(processes: Sequence[Processes]) -> tuple[float, dict[str, Tensor]]:
        model.zero_grad()
        total = 0.0
        for process in processes:
            loss = loss_of(model, process.share(batch), data, whole=batch, settings=settings)
            loss.backward()
            total += loss.item()
        return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    loss, expected = gradients([ALONE])
    total, added = gradients([Processes(rank, 3, CPU) for rank in range(3)])
    assert total == pytest.approx(loss, rel=1e-5)
    assert added.keys() == expected.keys()
    for name, gradient in added.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def test_every_request_is_in_one_share(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    opened = open_training_set(write_toy_set(tmp_path / "set"), reader="arrow")
    data = training_data(opened, fit_features(opened, config))
    jagged = decode_window(next(windows(data.training.batches(), rows=5)), items=data.items, features=data.features)
    batch = make_batch(jagged, torch.arange(5), features=data.features)
    shares = [Processes(rank, 7, CPU).share(batch) for rank in range(7)]
    assert [len(share.labels_BNS) for share in shares] == [1] * 5 + [0] * 2
    together = torch.cat([share.requests.candidate_row_BN for share in shares])
    assert torch.equal(together, batch.requests.candidate_row_BN)


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    config = toy_config(folder, *SETTINGS, "training.processes=2")
    data = open_training_set(write_toy_set(folder / "set"), reader="arrow")
    inputs = training_inputs(data, config, "gesr", device="cpu")
    arguments = [str(folder), json.dumps(inputs), "gesr", *SETTINGS, "training.processes=2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, *arguments],
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        logs = [process.communicate(timeout=250)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], logs
    assert "epoch 1 of 2: loss" in logs[0]
    assert "epoch" not in logs[1]
    (path,) = (manifest.parent for manifest in (folder / "checkpoints" / "gesr").glob("*/manifest.json"))
    assert_alike(load_checkpoint(path), train(tmp_path / "one"))


@pytest.mark.spark
@pytest.mark.slow
# Four processes load torch, after one another two by two: a minute of a busy machine each.
@pytest.mark.timeout(900)
def test_torch_distributor_gives_the_weights_of_one_process_and_the_same_bits_again(
    tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processes import this checkout, not one that is installed.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    two, again = (
        train(tmp_path / name, "training.processes=2", model="two_tower", spark=spark) for name in ("two", "again")
    )
    assert (two.path / "model.safetensors").read_bytes() == (again.path / "model.safetensors").read_bytes()
    assert two.checkpoint_id == again.checkpoint_id
    assert two.manifest["inputs"]["configuration"]["training"]["processes"] == 2
    one = train(tmp_path / "one", model="two_tower")
    assert one.checkpoint_id != two.checkpoint_id
    assert_alike(two, one)
    # It is found again, and nothing is started.
    monkeypatch.setattr("gesr_core.training.trainer.run_in_processes", lambda *_, **__: pytest.fail("trained again"))
    assert train(tmp_path / "two", "training.processes=2", model="two_tower", spark=spark).path == two.path


def test_several_processes_without_a_session_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"training.processes is 2, which takes a Spark session"):
        train(tmp_path, "training.processes=2")


def section(**values: Any) -> Any:
    config: Config = toy_config(Path("unused"))
    return config.training.model_copy(update=values)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, spark_master: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_training_device(section(processes=2), spark_master("local[4]")).type == "cuda"
    with pytest.raises(ConfigurationError, match="torch sees 2 here"):
        choose_training_device(section(processes=3), spark_master("local[4]"))


def test_on_a_cluster_the_tasks_gpus_decide(spark_master: Any) -> None:
    with_gpus, without = spark_master("yarn", **{"spark.task.resource.gpu.amount": "1"}), spark_master("yarn")
    assert choose_training_device(section(processes=2), with_gpus).type == "cuda"
    assert choose_training_device(section(processes=2, device="cpu"), with_gpus).type == "cpu"
    assert choose_training_device(section(processes=2), without).type == "cpu"
    with pytest.raises(ConfigurationError, match=r"spark\.task\.resource\.gpu\.amount is not set"):
        choose_training_device(section(processes=2, device="cuda"), without)


@pytest.fixture
def spark_master() -> Any:
    """What is asked of a session: its master and its configuration."""

    class Context:
        def __init__(self, master: str) -> None:
            self.master = master

    class Session:
        def __init__(self, master: str, **keys: str) -> None:
            self.sparkContext, self.conf = Context(master), keys

    return Session


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("model_name", ["gesr", "two_tower"])
def test_a_gpu_gives_the_weights_of_the_cpu(tmp_path: Path, model_name: str) -> None:
    on_cpu = train(tmp_path / "cpu", "training.device=cpu", model=model_name)
    on_gpu = train(tmp_path / "gpu", "training.device=cuda", model=model_name)
    assert on_gpu.manifest["inputs"]["device"] == "cuda"
    assert on_gpu.checkpoint_id != on_cpu.checkpoint_id
    # Kernels sum in other orders, as two processes do.
    assert_alike(on_gpu, on_cpu)
