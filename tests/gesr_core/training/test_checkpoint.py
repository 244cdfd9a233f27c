"""Checkpoints: the same content has the same id, and a changed file is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gesr_core.errors import InputError
from gesr_core.model.build import build_model
from gesr_core.model.event_signals import EventSignal
from gesr_core.ops.matching import MatchPair
from gesr_core.training.checkpoint import load_checkpoint, resolve_checkpoint, save_checkpoint
from gesr_core.training.features import FeatureSpace, Normaliser, Vocabulary
from tests.models import GESR

FEATURES = FeatureSpace(
    item_ids=(5, 7, 2**62),
    item_categories=(Vocabulary("creator", ("a", "b")), Vocabulary("topics", ("x",), 3)),
    item_numerics=(Normaliser("price", "log1p", 1.5, 0.1),),
    user_categories=(),
    user_numerics=(),
    actions=("buy", "view"),
    match_fields=("creator", "item_id", "topics"),
    match_pairs=(MatchPair(1, 1, 86_400, (1, 2)), MatchPair(0, 0), MatchPair(2, 2)),
    max_history=6,
    tasks=("bought", "liked"),
    task_logits=(-1.0, -2.0),
    event_signals=(EventSignal("below_share", 0.3, 0), EventSignal("repeat")),
    raw_values=("price",),
    history_window_days=90,
)


def save(root: Path, *, seed: int = 1, ds: str | None = None) -> Path:
    """Write a checkpoint of an untrained model, as if it had been trained for a day."""
    torch.manual_seed(seed)
    model = build_model(GESR, FEATURES.sizes)
    inputs = {"inputs": {"training_set": {"ds": ds}}} if ds else {}
    return save_checkpoint(
        root, model_name="gesr", model_config=GESR, weights=model.state_dict(), features=FEATURES,
        facts={"metrics": {"ne": 0.9}, **inputs}, log=[{"elapsed_s": float(torch.rand(1))}],
    )  # fmt: skip


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path))
    assert checkpoint.features == FEATURES
    assert checkpoint.model_config == GESR
    assert checkpoint.manifest["metrics"] == {"ne": 0.9}
    torch.manual_seed(1)
    expected = build_model(GESR, FEATURES.sizes).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint.build().state_dict().items())


def test_the_id_follows_from_the_content_alone(tmp_path: Path) -> None:
    first = save(tmp_path / "a")
    assert save(tmp_path / "a") == first
    assert save(tmp_path / "b").name == first.name
    assert save(tmp_path / "b", seed=2).name != first.name
    hashed = ("manifest.json", "features.json", "model.safetensors")
    assert all(
        (tmp_path / "a/gesr" / first.name / n).read_bytes() == (tmp_path / "b/gesr" / first.name / n).read_bytes()
        for n in hashed
    )


def test_a_model_name_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    first, second = save(tmp_path), save(tmp_path, seed=2)
    assert resolve_checkpoint(tmp_path, "gesr") == second
    assert resolve_checkpoint(tmp_path, f"gesr/{first.name}") == first
    assert resolve_checkpoint(tmp_path, str(first)) == first
    assert save(tmp_path) == first
    assert resolve_checkpoint(tmp_path, "gesr") == first


def test_a_checkpoint_of_an_older_day_does_not_become_the_newest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = save(tmp_path, ds="2024-03-10")
    older = save(tmp_path, seed=2, ds="2024-03-03")
    assert resolve_checkpoint(tmp_path, "gesr") == newest
    assert (
        f"{newest.name} stays the newest of gesr: it was trained for 2024-03-10, {older.name} for 2024-03"
        in caplog.text
    )
    # Of the same day the later one counts, and so does one of a later day.
    for seed, ds in ((3, "2024-03-10"), (4, "2024-03-11")):
        assert save(tmp_path, seed=seed, ds=ds) == resolve_checkpoint(tmp_path, "gesr")


def append(path: Path) -> None:
    """Add a byte."""
    path.write_bytes(path.read_bytes() + b" ")


def truncate(path: Path) -> None:
    """Cut the file."""
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """Change the last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def remove(path: Path) -> None:
    """Take the file away."""
    path.unlink()


@pytest.mark.parametrize("name", ["manifest.json", "features.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [append, truncate, flip, remove])
def test_a_damaged_file_is_refused_by_name(name: str, damage: object, tmp_path: Path) -> None:
    path = save(tmp_path)
    assert callable(damage)
    damage(path / name)
    with pytest.raises(InputError, match=rf"{name}.*run jobs/train\.py") as raised:
        load_checkpoint(path)
    assert raised.value.exit_code == 3


def test_another_checkpoints_weights_are_refused(tmp_path: Path) -> None:
    path, other = save(tmp_path), save(tmp_path, seed=2)
    (path / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors was altered, truncated or swapped"):
        load_checkpoint(path)


def test_a_missing_checkpoint_names_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path)
    with pytest.raises(InputError, match=r"no checkpoint 'gser' in .*has gesr\); run jobs/train\.py"):
        resolve_checkpoint(tmp_path, "gser")
    with pytest.raises(InputError, match=rf"is no checkpoint: it has no manifest\.json .*{path.name}"):
        load_checkpoint(path.with_name(path.name[:-1]))


def test_an_unfinished_checkpoint_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path)
    assert list((tmp_path / "gesr").iterdir()) == []


def test_nothing_in_a_manifest_tells_the_time(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path) / "manifest.json").read_bytes())
    assert sorted(manifest) == ["files", "format_version", "metrics", "model", "model_name"]
