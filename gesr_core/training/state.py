"""The state of a training that is under way: kept after each epoch, so that a killed one goes on. No JVM, no pickle.

`<checkpoints>/<model name>/.training-<hash of the inputs>/` holds `state.json`, the safetensors file that it names with
its SHA-256, and `log.jsonl`, which can be followed. It is gone when its checkpoint is there. Of two trainings of the
same inputs at once, both keep the same states under the same names: neither harms the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gesr_core.content import check_files, json_bytes, replace_file, sha256_of
from gesr_core.errors import InputError

log = logging.getLogger("train")

FORMAT_VERSION: Final = 1
STATE: Final = "state.json"
LOG: Final = "log.jsonl"
_HASH_DIGITS: Final = 16


@dataclass(frozen=True)
class TrainingState:
    """All that the rest of a training follows from, after an epoch.

    Args:
        weights: the model's state.
        best_weights: that of the best epoch so far; empty where none was measured to be better than another.
        optimizer: the optimizer's tensors, by "<parameter's number>.<name>".
        steps: the optimizer's steps so far.
        best_epoch: 0 where there is none.
        epochs: what was measured after each epoch.
        epoch_s: how long each took.
    """

    weights: Mapping[str, Tensor]
    best_weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    steps: int
    best_epoch: int
    epochs: tuple[Mapping[str, Any], ...]
    epoch_s: tuple[float, ...]


def inputs_key(inputs: Mapping[str, Any]) -> str:
    """Return a short name for a training: the hash of all that its weights follow from."""
    return _digest(inputs)[:_HASH_DIGITS]


@dataclass(frozen=True)
class StateFolder:
    """Where the state of one training is kept."""

    path: Path

    @staticmethod
    def of(model_folder: Path, inputs: Mapping[str, Any]) -> StateFolder:
        """Return the folder for the training of a model from these inputs."""
        return StateFolder(model_folder / f".training-{inputs_key(inputs)}")

    def save(self, state: TrainingState) -> None:
        """Keep a state in the place of the one before: a kill at any point leaves one of the two."""
        try:
            self._save(state)
        except (FileNotFoundError, SafetensorError):
            # A training of the same beside this one has ended, and took the folder away in the middle of this.
            self._save(state)

    def _save(self, state: TrainingState) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        name = f"epoch-{len(state.epochs)}.safetensors"
        draft = self.path / f".{name}-{os.getpid()}"
        save_file(_flat(state), draft)
        content = {
            "format_version": FORMAT_VERSION,
            "steps": state.steps,
            "best_epoch": state.best_epoch,
            "epochs": state.epochs,
            "epoch_s": state.epoch_s,
            "files": {name: sha256_of(draft)},
        }
        draft.replace(self.path / name)
        replace_file(self.path / STATE, json_bytes({**content, "sha256": _digest(content)}))
        for old in set(self.path.glob("epoch-*.safetensors")) - {self.path / name}:
            old.unlink(missing_ok=True)

    def load(self, *, like: Mapping[str, Tensor]) -> TrainingState | None:
        """Return the kept state; None where there is none or, with a warning, where it cannot be used.

        It cannot where a file is not what was written, or where it does not fit a model whose state is `like`.
        """
        if not (self.path / STATE).is_file():
            return None
        try:
            state = self._read()
            if {name: t.shape for name, t in state.weights.items()} != {name: t.shape for name, t in like.items()}:
                raise ValueError("its weights are those of another model")
            return state
        except (ValueError, KeyError, TypeError, AttributeError, InputError, SafetensorError, OSError) as err:
            log.warning("the state of training in %s cannot be used (%s): training starts anew", self.path, err)
            return None

    def _read(self) -> TrainingState:
        content = json.loads((self.path / STATE).read_bytes())
        if content.pop("sha256") != _digest(content):
            raise ValueError(f"{STATE} was altered or truncated")
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format is {content['format_version']}, this code reads {FORMAT_VERSION}")
        check_files(self.path, content["files"], remedy="it is of no more use")
        (name,) = content["files"]
        tensors = load_file(self.path / name)
        return TrainingState(
            weights=_part(tensors, "weights"),
            best_weights=_part(tensors, "best"),
            optimizer=_part(tensors, "optimizer"),
            steps=content["steps"],
            best_epoch=content["best_epoch"],
            epochs=tuple(content["epochs"]),
            epoch_s=tuple(content["epoch_s"]),
        )

    def start_log(self, lines: list[dict[str, Any]]) -> None:
        """Begin `log.jsonl` with the epochs that are done already."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / LOG).write_bytes(b"".join(json_bytes(line, indent=None) for line in lines))

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to `log.jsonl`: whoever follows the file sees it at once."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOG).open("ab") as file:
            file.write(json_bytes(line, indent=None))

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.path, ignore_errors=True)


def _flat(state: TrainingState) -> dict[str, Tensor]:
    parts = {"weights": state.weights, "best": state.best_weights, "optimizer": state.optimizer}
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(content)).hexdigest()
