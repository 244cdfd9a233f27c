"""Checkpoints: a folder of safetensors and JSON whose name is the hash of what it holds. No JVM, no pickle.

`<checkpoints>/<model name>/<id>/` holds `manifest.json`, `features.json` and `model.safetensors`, and may hold files
that are not part of it (`log.jsonl`: seconds and the like). The manifest names the other two with their SHA-256; the id
is the beginning of the manifest's own. So the same data, configuration, seed and libraries give the same id, and a
changed file has nowhere to hide. `<checkpoints>/<model name>/latest` holds the id of the newest.
"""

from __future__ import annotations

import difflib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gesr_core.config import AnyModelConfig, ModelConfig
from gesr_core.content import check_files, json_bytes, replace_file, sha256_of
from gesr_core.errors import InputError
from gesr_core.model.build import build_model
from gesr_core.training.features import FeatureSpace

log = logging.getLogger("train")

# Raised whenever a model of the same configuration gets other weights.
FORMAT_VERSION = 4
MANIFEST, FEATURES, WEIGHTS, LATEST = "manifest.json", "features.json", "model.safetensors", "latest"
_ID_DIGITS = 16


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be what its manifest says."""

    path: Path
    checkpoint_id: str
    model_name: str
    manifest: Mapping[str, Any]
    features: FeatureSpace

    @property
    def model_config(self) -> AnyModelConfig:
        """The model section that it was trained with."""
        return TypeAdapter(ModelConfig).validate_python(self.manifest["model"])

    def build(self) -> nn.Module:
        """Return the trained model in evaluation mode, on the CPU."""
        model = build_model(self.model_config, self.features.sizes)
        model.load_state_dict(load_file(self.path / WEIGHTS))
        return model.eval()


def save_checkpoint(
    root: Path,
    *,
    model_name: str,
    model_config: AnyModelConfig,
    weights: Mapping[str, Tensor],
    features: FeatureSpace,
    facts: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write a checkpoint and make it the newest of its model; return its folder.

    Args:
        root: the checkpoints folder.
        model_name: the model's name in `conf/base/models.yaml`.
        model_config: its section.
        weights: the model's state.
        features: the fitted feature space.
        facts: what else the manifest shall say (configuration, data, metrics, library versions); no times in it.
        log: lines for `log.jsonl`, which is not part of the hashed content.
    """
    parent = root / model_name
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".writing-", dir=parent))
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, draft / WEIGHTS)
        (draft / FEATURES).write_bytes(json_bytes(features.to_json()))
        manifest = {
            "format_version": FORMAT_VERSION,
            "model_name": model_name,
            "model": model_config.model_dump(mode="json"),
            **facts,
            "files": {name: sha256_of(draft / name) for name in (FEATURES, WEIGHTS)},
        }
        (draft / MANIFEST).write_bytes(json_bytes(manifest))
        (draft / "log.jsonl").write_bytes(b"".join(json_bytes(line, indent=None) for line in log))
        path = parent / sha256_of(draft / MANIFEST)[:_ID_DIGITS]
        move_into_place(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    make_latest(path)
    return path


def make_latest(path: Path) -> bool:
    """Make a checkpoint its model's newest, unless one that learned a later day is; say whether it is now.

    So a training that slept, or one of an older day, does not move the nightly job back. Call it with its id.
    """
    alias = path.parent / LATEST
    with FileLock(path.parent / f".{LATEST}.lock"):
        newest = path.parent / alias.read_text().strip() if alias.is_file() else None
        if newest is not None and (newest / MANIFEST).is_file() and _learned_until(newest) > _learned_until(path):
            log.warning(
                "%s stays the newest of %s: it was trained for %s, %s for %s (to score with it: --checkpoint %s/%s)",
                newest.name, path.parent.name, _learned_until(newest), path.name, _learned_until(path),
                path.parent.name, path.name,
            )  # fmt: skip
            return False
        replace_file(alias, f"{path.name}\n".encode())
        return True


def _learned_until(path: Path) -> str:
    """Return the `ds` that a checkpoint was trained for; a text that is before all days where it says nothing."""
    inputs = json.loads((path / MANIFEST).read_bytes()).get("inputs", {})
    return str(inputs.get("training_set", {}).get("ds", ""))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder and check every file of it.

    Raises:
        InputError: there is no such checkpoint, or a file is missing, altered, truncated or another checkpoint's.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise InputError(f"{path} is no checkpoint: it has no {MANIFEST}{_others(path)}; run jobs/train.py")
    checkpoint_id = sha256_of(manifest_path)[:_ID_DIGITS]
    if checkpoint_id != path.resolve().name:
        raise InputError(
            f"{manifest_path} was altered, or its folder renamed: its content's id is {checkpoint_id}; "
            "restore the folder or run jobs/train.py"
        )
    manifest = json.loads(manifest_path.read_bytes())
    if manifest["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{path} has format {manifest['format_version']}, this code reads {FORMAT_VERSION}: train again"
        )
    check_files(path, manifest["files"], remedy="restore the folder or run jobs/train.py")
    features = FeatureSpace.from_json(json.loads((path / FEATURES).read_bytes()))
    return Checkpoint(path, checkpoint_id, manifest["model_name"], manifest, features)


def resolve_checkpoint(root: Path, reference: str) -> Path:
    """Turn a model's name (its newest), `<model name>/<id>` or a folder into a checkpoint's folder.

    Raises:
        InputError: there is none; names what there is.
    """
    for path in (root / reference, Path(reference)):
        if (path / MANIFEST).is_file():
            return path
        alias = path / LATEST
        if alias.is_file() and (newest := path / alias.read_text().strip()).is_dir():
            return newest
    raise InputError(f"there is no checkpoint {reference!r} in {root}{_others(root / reference)}; run jobs/train.py")


def move_into_place(draft: Path, path: Path) -> None:
    """Give a whole checkpoint its folder's name, by which others find it; one that is there already stays."""
    # mkdtemp makes a private folder; executors may run as another user.
    draft.chmod(0o755)
    try:
        draft.rename(path)
    except OSError:
        # The same content is there already, from an earlier run or from one that ran beside this one.
        if not (path / MANIFEST).is_file():
            raise


def _others(path: Path) -> str:
    """The nearest names beside a folder that is not what was looked for."""
    folders = [p for p in path.parent.glob("*") if p.is_dir()] if path.parent.is_dir() else []
    names = [p.name for p in folders if not p.name.startswith(".")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or sorted(names)[:5]
    return f" ({path.parent} has {', '.join(near)})" if near else f" ({path.parent} has none)"
