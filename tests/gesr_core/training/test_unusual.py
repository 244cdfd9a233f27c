"""Every configured model trains on, and scores, what a real day has: no history, one event, the never seen."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from gesr_core.config import load_config
from gesr_core.training.checkpoint import load_checkpoint
from gesr_core.training.data import decode_window, make_batch
from gesr_core.training.loop import logits_of
from gesr_core.training.trainer import open_training_set, train_checkpoint, training_data
from tests.training_sets import DATES, toy_config, toy_requests, write_toy_set

# Ids of the toy item tables: 3, 13, ..., 193. The first never has an event, so training knows none of its id.
NEVER_SOLD, NEVER_LISTED = 3, 203


def first_events(requests: pa.Table, counts: list[int]) -> pa.Table:
    """Cut the first histories to so many events."""
    for place, name in enumerate(requests.column_names):
        if name.startswith("history_"):
            lists = requests.column(name).to_pylist()
            cut = [values[:n] for values, n in zip(lists, counts, strict=False)] + lists[len(counts) :]
            requests = requests.set_column(place, name, pa.array(cut, requests.schema.field(name).type))
    return requests


def with_strangers(requests: pa.Table) -> pa.Table:
    """Give the first users a feature value that no other has."""
    values = ["never seen"] * 3 + requests.column("user_age_group").to_pylist()[3:]
    return requests.set_column(requests.column_names.index("user_age_group"), "user_age_group", pa.array(values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_toy_set(tmp_path_factory.mktemp("unusual") / "set")
    days = [toy_requests(ds, seed=n, users=8) for n, ds in enumerate(DATES)]
    train = pa.concat_tables([first_events(day, [0, 1, 1]) for day in days[:2]])
    validation = with_strangers(first_events(days[2], [0, 1, 0, 1]))
    pq.write_table(train, folder / "train" / "part-0.parquet")
    pq.write_table(validation, folder / "validation" / "part-0.parquet")
    return folder


def test_the_set_has_what_is_unusual(folder: Path) -> None:
    for part in ("train", "validation"):
        rows = pq.read_table(folder / part / "part-0.parquet")
        events = pc.list_value_length(rows.column("history_item_id")).to_pylist()
        assert {0, 1} <= set(events)
        in_histories = set(rows.column("history_item_id").combine_chunks().flatten().to_pylist())
        candidates = set(rows.column("candidate_item_id").combine_chunks().flatten().to_pylist())
        assert NEVER_LISTED in in_histories
        assert NEVER_SOLD in candidates
    assert NEVER_LISTED not in pq.read_table(folder / "items" / f"{DATES[2]}.parquet").column("item_id").to_pylist()


@pytest.mark.parametrize("model_name", sorted(load_config("local").models))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_model_trains_and_scores_the_unusual_to_finite_values(
    folder: Path, tmp_path: Path, model_name: str, precision: str
) -> None:
    data = open_training_set(folder, reader="arrow")
    # In batches of one request, each unusual one is a batch of its own too.
    config = toy_config(tmp_path, "training.epochs=1", "training.batch_requests=1", f"training.precision={precision}")
    checkpoint = load_checkpoint(train_checkpoint(data, config, model_name=model_name))
    assert NEVER_SOLD not in checkpoint.features.item_ids
    assert "never seen" not in checkpoint.features.user_categories[0].values
    model = checkpoint.build()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert all(torch.tensor([e["loss"], e["ne"]]).isfinite().all() for e in checkpoint.manifest["metrics"]["epochs"])

    loop_data = training_data(data, checkpoint.features)
    window = pa.Table.from_batches(data.validation.batches())
    jagged = decode_window(window, items=loop_data.items, features=checkpoint.features)
    batch = make_batch(jagged, torch.arange(window.num_rows), features=checkpoint.features)
    with torch.inference_mode():
        assert logits_of(model, batch, loop_data.items)[batch.valid_BN].isfinite().all()
