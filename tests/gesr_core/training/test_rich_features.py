"""Lists, signals, narrowed pairs and the published offset from training to serving; the same for both kinds of ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gesr_core.runtime.collate import decode, pad
from gesr_core.runtime.item_states import Catalogue, export_item_states, load_item_states
from gesr_core.training.checkpoint import Checkpoint, load_checkpoint
from gesr_core.training.data import decode_window, encode_training_items, index_of, make_batch, sorted_by_key
from gesr_core.training.loop import logits_of
from gesr_core.training.trainer import open_training_set, train_checkpoint
from tests.training_sets import DATES, toy_config, write_toy_set

pytestmark = pytest.mark.petastorm

RICH = [
    "features.item=[{name: product_subclass, kind: categorical}, {name: topics, kind: multi, max_values: 3}, "
    "{name: length_s, kind: numeric}]",
    "features.user=[{name: age_group, kind: categorical}, {name: likes, kind: multi, max_values: 2}]",
    "features.event_signals=[{name: skipped, kind: below_share, share: 0.5, of: length_s}, "
    "{name: again, kind: repeat}, {name: since, kind: days_since_same}]",
    "features.hard_match=[{history: item_id, candidate: item_id}, {history: topics, candidate: topics}, "
    "{history: topics, candidate: topics, window_days: 20, actions: [buy]}, "
    "{history: product_subclass, candidate: topics}]",
    "models.gesr.match_offset=literal",
]


def add_columns(path: Path, **columns: pa.Array) -> None:
    """Add columns to a Parquet file."""
    table = pq.read_table(path)
    for name, column in columns.items():
        table = table.append_column(name, column)
    pq.write_table(table, path)


def lists(count: int, *, seed: int, type_: pa.DataType) -> pa.Array:
    """Lists of up to four small numbers, some of them null, empty or with doubles and nulls."""
    rng = np.random.default_rng(seed)
    drawn: list[Any] = [[int(v) for v in rng.integers(0, 5, rng.integers(0, 5))] for _ in range(count)]
    drawn[:3] = [None, [], [3, None, 3]]
    return pa.array(drawn, pa.list_(pa.int64())).cast(pa.list_(type_))


def write_rich_set(folder: Path, *, string_ids: bool = False) -> Path:
    """The toy set with topics and lengths of its items and likes of its users."""
    write_toy_set(folder, string_ids=string_ids)
    for number, path in enumerate(sorted((folder / "items").glob("*.parquet"))):
        rows = pq.read_metadata(path).num_rows
        lengths = pa.array(np.random.default_rng(number).exponential(60, rows), mask=np.arange(rows) % 5 == 0)
        add_columns(path, topics=lists(rows, seed=number, type_=pa.int64()), length_s=lengths)
    for number, name in enumerate(("train", "validation")):
        path = folder / name / "part-0.parquet"
        add_columns(path, user_likes=lists(pq.read_metadata(path).num_rows, seed=9 + number, type_=pa.string()))
    return folder


def train(folder: Path, root: Path, *, model: str, reader: str = "arrow") -> Checkpoint:
    """Train on a rich set."""
    config = toy_config(root, *RICH)
    return load_checkpoint(train_checkpoint(open_training_set(folder, reader=reader), config, model_name=model))


@torch.inference_mode()
def trained_and_served(folder: Path, checkpoint: Checkpoint, root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The validation date's logits as training computes them, and through an export on disk with other padding."""
    data, model, features = open_training_set(folder, reader="arrow"), checkpoint.build(), checkpoint.features
    window = pa.Table.from_batches(data.validation.batches())
    select = torch.arange(window.num_rows)
    items = encode_training_items(data.items, features)
    batch = make_batch(decode_window(window, items=items, features=features), select, features=features)
    as_trained = logits_of(model, batch, items)

    table = sorted_by_key(data.items[DATES[-1]])
    index = index_of(table)
    served: Any = model
    exported = export_item_states(
        root,
        checkpoint_id=checkpoint.checkpoint_id,
        ds=DATES[-1],
        catalogue=Catalogue(index.key_R, index.value_R, features.encode_items(table)),
        encode=served.encode_items,
    )
    states = load_item_states(exported.path)
    jagged = decode(
        window.combine_chunks().to_batches()[0],
        index=states.index,
        encode_users=features.encode_users,
        actions=features.actions,
        request_time_s=979_689_600,  # 2001-01-17 00:00 UTC
    )
    requests = pad(jagged, select, history_length=6, candidates=11)
    state = served.encode_user(requests.history, states.items.take(requests.history.row_BT), requests.user)
    return as_trained, served.score(state, states.items.take(requests.candidate_row_BN))[:, :6]


@pytest.mark.parametrize("model", ["gesr", "two_tower"])
def test_the_served_score_is_the_trained_score_for_both_kinds_of_ids(model: str, tmp_path: Path) -> None:
    found = {}
    for kind in ("bigint", "string"):
        folder = write_rich_set(tmp_path / kind / "set", string_ids=kind == "string")
        checkpoint = train(folder, tmp_path / kind, model=model)
        found[kind], as_served = trained_and_served(folder, checkpoint, tmp_path / kind / "states")
        assert found[kind].isfinite().all()
        torch.testing.assert_close(as_served, found[kind], rtol=0, atol=5e-5)
    torch.testing.assert_close(found["string"], found["bigint"], rtol=0, atol=5e-5)


def test_both_readers_train_the_same_weights_on_lists(tmp_path: Path) -> None:
    pytest.importorskip("petastorm", exc_type=ImportError)
    folder = write_rich_set(tmp_path / "set")
    arrow, petastorm = (
        train(folder, tmp_path / reader, model="two_tower", reader=reader) for reader in ("arrow", "petastorm")
    )
    assert petastorm.checkpoint_id == arrow.checkpoint_id


def test_an_item_whose_list_or_raw_value_changed_is_encoded_anew_and_no_other(tmp_path: Path) -> None:
    folder = write_rich_set(tmp_path / "set")
    checkpoint = train(folder, tmp_path, model="gesr")
    model: Any = checkpoint.build()
    items = sorted_by_key(open_training_set(folder, reader="arrow").items[DATES[-1]])

    def encoded_rows(table: pa.Table, ds: str) -> int:
        index = index_of(table)
        catalogue = Catalogue(index.key_R, index.value_R, checkpoint.features.encode_items(table))
        return export_item_states(
            tmp_path / "states", checkpoint_id="c", ds=ds, catalogue=catalogue, encode=model.encode_items
        ).encoded_rows

    def changed(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
        column = table[name].to_pylist()
        column[row] = value
        return table.set_column(table.column_names.index(name), name, pa.array(column, table.schema.field(name).type))

    first = changed(items, "length_s", 7, 1e9)
    second = changed(first, "topics", 4, [0, 1, 2])
    # Normalised, both lengths are cut to the same: the raw one alone tells.
    third = changed(second, "length_s", 7, 2e9)
    assert encoded_rows(first, "2001-01-17") == items.num_rows
    assert encoded_rows(second, "2001-01-18") == 1
    assert encoded_rows(third, "2001-01-19") == 1
