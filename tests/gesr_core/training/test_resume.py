"""A training that was killed goes on after its last finished epoch, to the same bytes; a broken state is not used."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gesr_core.failpoints import VARIABLE
from gesr_core.training.state import StateFolder
from gesr_core.training.trainer import open_training_set, train_checkpoint
from tests.processes import wait_until_stopped
from tests.training_sets import toy_config, write_toy_set

ROOT = Path(__file__).parents[3]
FILES = ("manifest.json", "features.json", "model.safetensors")
EPOCHS = ["training.epochs=3", "training.patience=3"]
TRAIN = """
import logging, sys
from pathlib import Path
from gesr_core.training.trainer import open_training_set, train_checkpoint
from tests.processes import wait_until_stopped
from tests.training_sets import toy_config

logging.basicConfig(level=logging.INFO, format="%(message)s")
root = Path(sys.argv[1])
data = open_training_set(root / "set", reader="arrow")
train_checkpoint(data, toy_config(root, *sys.argv[2:]), model_name="gesr")
"""
WAIT_S = 120


class Interrupted(Exception):
    """Stands for whatever ends a process; the kill itself is tested once, for real."""


def train(folder: Path, *overrides: str, model: str = "two_tower") -> Path:
    if not (folder / "set").exists():
        write_toy_set(folder / "set")
    data = open_training_set(folder / "set", reader="arrow")
    return train_checkpoint(data, toy_config(folder, *EPOCHS, *overrides), model_name=model)


def train_until(point: str, folder: Path, *overrides: str) -> StateFolder:
    """Train until `point`; return the state that is left."""

    def reach(name: str) -> None:
        if name == point:
            raise Interrupted(point)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gesr_core.training.loop.reach", reach)
        with pytest.raises(Interrupted, match=point):
            train(folder, *overrides)
    (path,) = (folder / "checkpoints" / "two_tower").glob(".training-*")
    return StateFolder(path)


def same_bytes(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def epochs_in(log: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose training nothing disturbed."""
    return train(tmp_path_factory.mktemp("undisturbed"))


def start(folder: Path, failpoint: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder), *EPOCHS],
        env={**os.environ, VARIABLE: failpoint, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_killed_training_goes_on_after_its_last_epoch_to_the_same_bytes(tmp_path: Path) -> None:
    killed, checkpoints = tmp_path / "killed", tmp_path / "killed" / "checkpoints" / "gesr"
    write_toy_set(killed / "set")
    process = start(killed, "in_epoch_2:stop")
    wait_until_stopped(process)
    (state,) = checkpoints.glob(".training-*")
    # What can be followed while training runs, and no pickle among it.
    assert epochs_in(state / "log.jsonl") == [1]
    assert sorted(path.name for path in state.iterdir()) == ["epoch-1.safetensors", "log.jsonl", "state.json"]
    process.kill()
    log, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == -signal.SIGKILL
    assert "epoch 1 of 3: loss" in log
    assert not list(checkpoints.glob("*/manifest.json"))

    resumed = start(killed)
    log, _ = resumed.communicate(timeout=WAIT_S)
    assert resumed.returncode == 0, log
    assert "resuming after epoch 1 of 3" in log
    assert "epoch 1 of 3: loss" not in log
    assert all(f"epoch {epoch} of 3: loss" in log for epoch in (2, 3))
    (path,) = (manifest.parent for manifest in checkpoints.glob("*/manifest.json"))
    assert same_bytes(path, train(tmp_path / "undisturbed", model="gesr"))
    assert epochs_in(path / "log.jsonl") == [1, 2, 3]
    assert not state.exists()


@pytest.mark.slow
def test_two_trainings_of_the_same_at_once_end_with_one_checkpoint(tmp_path: Path) -> None:
    both, checkpoints = tmp_path / "both", tmp_path / "both" / "checkpoints" / "gesr"
    write_toy_set(both / "set")
    processes = [start(both, "in_epoch_2:stop") for _ in range(2)]
    for process in processes:
        wait_until_stopped(process)
    while any(process.poll() is None for process in processes):
        # The point is passed with every step.
        for process in processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.05)
    for process in processes:
        log, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, log
        assert all(f"epoch {epoch} of 3: loss" in log for epoch in (2, 3)), "both trained"
    (path,) = (manifest.parent for manifest in checkpoints.glob("*/manifest.json"))
    assert same_bytes(path, train(tmp_path / "undisturbed", model="gesr"))
    assert (checkpoints / "latest").read_text().strip() == path.name


def test_a_training_that_ended_while_catching_up_trains_no_epoch_again(
    tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_until("in_epoch_4", tmp_path)
    with caplog.at_level(logging.INFO):
        assert same_bytes(train(tmp_path), undisturbed)
    assert "resuming after epoch 3 of 3" in caplog.text
    assert "of 3: loss" not in caplog.text


def test_a_resumed_training_stops_when_an_undisturbed_one_does(tmp_path: Path) -> None:
    settings = ["training.epochs=20", "training.patience=2", "training.learning_rate=1.0"]
    without = train(tmp_path / "undisturbed", *settings)
    epochs = len(json.loads((without / "manifest.json").read_bytes())["metrics"]["epochs"])
    assert 2 < epochs < 20
    train_until(f"in_epoch_{epochs}", tmp_path, *settings)
    assert same_bytes(train(tmp_path, *settings), without)


def test_the_state_of_other_inputs_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = train_until("in_epoch_2", tmp_path)
    with caplog.at_level(logging.INFO):
        train(tmp_path, "training.seed=3")
    assert "resuming" not in caplog.text
    assert (state.path / "state.json").is_file()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def count_a_step_more(path: Path) -> None:
    content = json.loads(path.read_bytes())
    content["steps"] += 1
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("epoch-1.safetensors", truncate),
        ("epoch-1.safetensors", flip_a_bit),
        ("epoch-1.safetensors", Path.unlink),
        ("state.json", truncate),
        ("state.json", count_a_step_more),
        ("state.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_broken_state_is_not_used(
    tmp_path: Path, undisturbed: Path, name: str, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    state = train_until("in_epoch_2", tmp_path)
    spoil(state.path / name)
    with caplog.at_level(logging.INFO):
        assert same_bytes(train(tmp_path), undisturbed)
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "training starts anew" in warning
    assert "epoch 1 of 3: loss" in caplog.text


def test_a_state_that_does_not_fit_the_model_is_not_used(
    tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = train_until("in_epoch_2", tmp_path)
    wide = train_until("in_epoch_2", tmp_path / "wide", "models.two_tower.width=16")
    for path in wide.path.iterdir():
        path.replace(state.path / path.name)
    assert same_bytes(train(tmp_path), undisturbed)
    assert "another model" in caplog.text
