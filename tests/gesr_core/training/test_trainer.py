"""A toy training set to a checkpoint: reproducible, the same for both kinds of ids, and served as trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gesr_core.runtime.collate import decode, pad
from gesr_core.runtime.item_states import Catalogue, export_item_states, load_item_states
from gesr_core.training.checkpoint import Checkpoint, load_checkpoint
from gesr_core.training.data import decode_window, encode_training_items, index_of, make_batch, sorted_by_key
from gesr_core.training.loop import logits_of
from gesr_core.training.trainer import (
    base_logits,
    find_checkpoint,
    open_training_set,
    train_checkpoint,
    training_inputs,
)
from tests.training_sets import DATES, toy_config, toy_requests, write_toy_set

pytestmark = pytest.mark.petastorm

MODELS = ["gesr", "tarq", "two_tower"]


def train(folder: Path, *overrides: str, model: str = "gesr", string_ids: bool = False) -> Checkpoint:
    """Train on a toy set in `folder`."""
    data = open_training_set(write_toy_set(folder / "set", string_ids=string_ids), reader="arrow")
    return load_checkpoint(train_checkpoint(data, toy_config(folder, *overrides), model_name=model))


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A folder with a training set, and a checkpoint trained on it."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, train(folder, model=request.param)


def test_the_same_data_configuration_and_seed_give_the_same_bytes(
    trained: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    again = train(tmp_path, model=trained[1].model_name)
    assert again.checkpoint_id == trained[1].checkpoint_id
    names = ("manifest.json", "features.json", "model.safetensors")
    assert all((again.path / name).read_bytes() == (trained[1].path / name).read_bytes() for name in names)


def test_two_threads_give_the_same_weights_each_time(tmp_path: Path) -> None:
    # So wide and so many that two threads add up the gradients of one row; in the order in which they come, without
    # torch's deterministic algorithms: four such runs then have four results.
    folder = write_toy_set(tmp_path / "set")
    requests = [toy_requests(ds, seed=number, users=256) for number, ds in enumerate(DATES[:2])]
    pq.write_table(pa.concat_tables(requests), folder / "train" / "part-0.parquet")
    data = open_training_set(folder, reader="arrow")
    wide = ["training.threads=2", "training.batch_requests=128", "models.gesr.width=64", "models.gesr.id_width=64"]
    configs = [toy_config(tmp_path / str(run), *wide, "training.epochs=1") for run in range(3)]
    weights = [train_checkpoint(data, config, model_name="gesr") / "model.safetensors" for config in configs]
    assert len({path.read_bytes() for path in weights}) == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    weights = [train(tmp_path / s, f"training.seed={s}").build().state_dict() for s in ("1", "2")]
    assert not torch.equal(weights[0]["user_tower.vector.0.weight"], weights[1]["user_tower.vector.0.weight"])


def test_what_was_trained_is_found_again(trained: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, checkpoint = trained
    monkeypatch.setattr("gesr_core.training.trainer.train", lambda *_, **__: pytest.fail("trained again"))
    data = open_training_set(folder / "set", reader="arrow")
    assert train_checkpoint(data, toy_config(folder), model_name=checkpoint.model_name) == checkpoint.path


def test_what_older_code_trained_is_trained_anew(
    trained: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, checkpoint = trained
    data, config = open_training_set(folder / "set", reader="arrow"), toy_config(folder)
    inputs = training_inputs(data, config, checkpoint.model_name, device="cpu")
    assert find_checkpoint(checkpoint.path.parent, inputs) == checkpoint.path
    monkeypatch.setattr("gesr_core.training.trainer.FORMAT_VERSION", 0)
    assert (
        find_checkpoint(checkpoint.path.parent, training_inputs(data, config, checkpoint.model_name, device="cpu"))
        is None
    )


def test_the_petastorm_reader_gives_the_same_weights(trained: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    pytest.importorskip("petastorm", exc_type=ImportError)
    data = open_training_set(trained[0] / "set", reader="petastorm")
    config = toy_config(tmp_path, "training.reader=petastorm")
    read_again = load_checkpoint(train_checkpoint(data, config, model_name=trained[1].model_name))
    assert read_again.checkpoint_id == trained[1].checkpoint_id


def test_string_ids_give_the_same_model(trained: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    texts = train(tmp_path, model=trained[1].model_name, string_ids=True).build().state_dict()
    numbers = trained[1].build().state_dict()
    # Keys that collide put the items into another order: sums over them differ in their last bits.
    assert all(torch.allclose(texts[name], numbers[name], atol=1e-4) for name in numbers)


def test_training_learns_that_users_buy_again(tmp_path: Path) -> None:
    metrics = train(tmp_path, "training.epochs=25", "training.patience=25").manifest["metrics"]
    first, best = metrics["epochs"][0], metrics["epochs"][metrics["best_epoch"] - 1]
    assert best["ne"] == min(epoch["ne"] for epoch in metrics["epochs"])
    assert best["auc_bought"] > 0.9 > first["auc_bought"]


def test_training_stops_when_it_gets_no_better(tmp_path: Path) -> None:
    metrics = train(tmp_path, "training.epochs=9", "training.learning_rate=3.0").manifest["metrics"]
    assert len(metrics["epochs"]) == metrics["best_epoch"] + 1 < 9


@pytest.mark.parametrize("string_ids", [False, True])
def test_the_served_score_is_the_trained_score(
    trained: tuple[Path, Checkpoint], string_ids: bool, tmp_path: Path
) -> None:
    checkpoint, folder = trained[1], trained[0] / "set"
    if string_ids:
        folder = write_toy_set(tmp_path / "set", string_ids=True)
        checkpoint = train(tmp_path / "trained", model=checkpoint.model_name, string_ids=True)
    data, model, features = open_training_set(folder, reader="arrow"), checkpoint.build(), checkpoint.features
    window = pa.Table.from_batches(data.validation.batches())

    items = encode_training_items(data.items, features)
    jagged = decode_window(window, items=items, features=features)
    batch = make_batch(jagged, torch.arange(window.num_rows), features=features)
    with torch.inference_mode():
        as_trained = logits_of(model, batch, items)
    as_served = served_logits(model, checkpoint, data.items[DATES[-1]], window, root=tmp_path)
    assert as_trained.isfinite().all()
    torch.testing.assert_close(as_served, as_trained, rtol=0, atol=5e-5)


@torch.inference_mode()
def served_logits(model: Any, checkpoint: Checkpoint, items: pa.Table, window: pa.Table, *, root: Path) -> torch.Tensor:
    """Score through an export on disk, with other padding than in training."""
    table = sorted_by_key(items)
    index = index_of(table)
    catalogue = Catalogue(index.key_R, index.value_R, checkpoint.features.encode_items(table))
    exported = export_item_states(
        root, checkpoint_id=checkpoint.checkpoint_id, ds=DATES[-1], catalogue=catalogue, encode=model.encode_items
    )
    states = load_item_states(exported.path)
    jagged = decode(
        window.combine_chunks().to_batches()[0],
        index=states.index,
        encode_users=checkpoint.features.encode_users,
        actions=checkpoint.features.actions,
        request_time_s=979_689_600,  # 2001-01-17 00:00 UTC
    )
    requests = pad(jagged, torch.arange(window.num_rows), history_length=6, candidates=11)
    state = model.encode_user(requests.history, states.items.take(requests.history.row_BT), requests.user)
    return model.score(state, states.items.take(requests.candidate_row_BN))[:, :6]


def test_the_newest_date_is_learned_after_it_was_measured_on(tmp_path: Path) -> None:
    def trained_with(name: str, rate: float, *, folder: Path) -> Checkpoint:
        config = toy_config(tmp_path / name, f"training.catch_up_rate={rate}")
        return load_checkpoint(
            train_checkpoint(open_training_set(folder, reader="arrow"), config, model_name="two_tower")
        )

    def weights(checkpoint: Checkpoint) -> bytes:
        return (checkpoint.path / "model.safetensors").read_bytes()

    original, altered = write_toy_set(tmp_path / "set"), write_toy_set(tmp_path / "altered")
    path = altered / "validation" / "part-0.parquet"
    rows = pq.read_table(path)
    labels = pa.array([[1] * 6] * rows.num_rows, pa.list_(pa.int32()))
    pq.write_table(rows.set_column(rows.column_names.index("label_bought"), "label_bought", labels), path)

    without = trained_with("a", 0, folder=original)
    caught_up = trained_with("b", 0.5, folder=original)
    assert caught_up.manifest["metrics"]["epochs"] == without.manifest["metrics"]["epochs"]
    assert without.manifest["metrics"]["catch_up_loss"] is None
    assert caught_up.manifest["metrics"]["catch_up_loss"] > 0
    assert weights(caught_up) != weights(without)
    assert weights(trained_with("c", 0.5, folder=altered)) != weights(caught_up)


def test_what_only_validation_holds_changes_no_vocabulary(tmp_path: Path) -> None:
    folder = write_toy_set(tmp_path / "set")
    config = toy_config(tmp_path, "training.epochs=1", "training.catch_up_rate=0")
    before = load_checkpoint(train_checkpoint(open_training_set(folder, reader="arrow"), config, model_name="gesr"))
    path = folder / "validation" / "part-0.parquet"
    rows = pq.read_table(path)
    new = ["new"] * rows.num_rows
    pq.write_table(rows.set_column(rows.column_names.index("user_age_group"), "user_age_group", pa.array(new)), path)
    config = toy_config(tmp_path / "again", "training.epochs=1", "training.catch_up_rate=0")
    after = load_checkpoint(train_checkpoint(open_training_set(folder, reader="arrow"), config, model_name="gesr"))
    assert (after.path / "features.json").read_bytes() == (before.path / "features.json").read_bytes()
    assert (after.path / "model.safetensors").read_bytes() == (before.path / "model.safetensors").read_bytes()


def test_base_rates_count_what_was_thinned_out() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "label_a": [[1, 0, 0], [0]],
            "label_b": [[0, 1, 0], [1]],
            "sampling_rate": [[0.5, 0.5, 0.5], [0.01]],
            "sampling_weight": [[1.0, 1.0, 4.0], [1.0]],
            "exposed": [[True, True, True], [False]],
        }
    )
    # Exposed: two labelled pairs, and one of two others of four users: 10 in truth. One more of each kind is added.
    assert base_logits([batch], ["a", "b"]) == pytest.approx({"a": math.log(2 / 10), "b": math.log(2 / 10)})
