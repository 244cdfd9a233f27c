"""Item states on disk: what changed is encoded, the rest is copied, and nothing altered is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from gesr_core.errors import InputError
from gesr_core.model.inputs import ItemFeatures, ItemState
from gesr_core.runtime import item_states
from gesr_core.runtime.item_states import (
    Catalogue,
    Exported,
    export_item_states,
    is_current,
    load_item_states,
    resolve_item_states,
)


def catalogue(prices: dict[int, float], *, string_ids: bool = False) -> Catalogue:
    """Items by id, each with a price; as STRING ids, keys collide in fives."""
    ids = sorted(prices)
    keys = torch.tensor([i // 5 for i in ids] if string_ids else ids, dtype=torch.int64)
    values = pa.array([f"{i:04d}" for i in ids], pa.string()) if string_ids else None
    numeric_RF = torch.tensor([[prices[i]] for i in ids]).reshape(len(ids), 1)
    nothing_RC, nothing_RV = torch.zeros(len(ids), 0, dtype=torch.int64), torch.zeros(len(ids), 0)
    index_R, match_RM = torch.tensor(ids, dtype=torch.int64), torch.arange(1, len(ids) + 1, dtype=torch.int32)
    return Catalogue(
        keys,
        values,
        ItemFeatures(index_R, nothing_RC, numeric_RF, match_RM.unsqueeze(1), nothing_RV),
    )


def encode(items: ItemFeatures) -> ItemState:
    """A model of three columns (the price, its square, the index), which keeps a matrix of the price besides."""
    price_R, index_R = items.numeric_RF[:, 0], items.index_R.float()
    extra = {"matrix_RXY": price_R[:, None, None].repeat(1, 2, 3)}
    return ItemState(torch.stack([price_R, price_R**2], 1), index_R.unsqueeze(1), items.match_RM, extra)


def export(root: Path, items: Catalogue, *, ds: str = "2001-02-21") -> Exported:
    """Export for the checkpoint `c`."""
    return export_item_states(root, checkpoint_id="c", ds=ds, catalogue=items, encode=encode)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_states, "BLOCK_ROWS", 3)


@pytest.mark.parametrize("string_ids", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_every_item_is_found_with_its_state(count: int, string_ids: bool, tmp_path: Path) -> None:
    items = catalogue({3 * i: i + 0.5 for i in range(count)}, string_ids=string_ids)
    states = load_item_states(export(tmp_path, items).path)
    values = None if items.value_R is None else pa.array([*items.value_R.to_pylist(), "nobody"], pa.string())
    rows = states.index.rows(torch.cat([items.key_R, torch.tensor([10**9])]), values)
    assert rows.tolist() == [*range(count), -1]
    taken = states.items.take(rows)
    assert taken.vector_RD[:-1, 0].tolist() == [i + 0.5 for i in range(count)]
    assert taken.vector_RD[-1].tolist() == [0.0, 0.0]
    assert taken.extra["matrix_RXY"].tolist() == [[[i + 0.5] * 3] * 2 for i in range(count)] + [[[0.0] * 3] * 2]


@pytest.mark.parametrize("string_ids", [False, True])
def test_only_new_and_changed_items_are_encoded_and_the_result_is_that_of_a_full_export(
    string_ids: bool, tmp_path: Path
) -> None:
    yesterday = catalogue({i: float(i) for i in range(10)}, string_ids=string_ids)
    today = catalogue({i: float(i) if i != 4 else 40.0 for i in range(1, 12)}, string_ids=string_ids)
    assert export(tmp_path / "kept", yesterday, ds="2001-02-20").encoded_rows == 10
    incremental, full = export(tmp_path / "kept", today), export(tmp_path / "anew", today)
    assert (incremental.encoded_rows, incremental.rows, full.encoded_rows) == (3, 11, 11)
    assert incremental.path.name == full.path.name
    names = ["states.safetensors", "inputs.safetensors", *(["ids.arrow"] if string_ids else [])]
    assert all((incremental.path / n).read_bytes() == (full.path / n).read_bytes() for n in names)


def test_an_export_that_exists_is_left_alone(tmp_path: Path) -> None:
    items = catalogue({1: 1.0, 2: 2.0})
    first = export(tmp_path, items)
    written_ns = (first.path / "states.safetensors").stat().st_mtime_ns
    again = export(tmp_path, items)
    assert (again.path, again.encoded_rows) == (first.path, 0)
    assert (first.path / "states.safetensors").stat().st_mtime_ns == written_ns


def test_changed_inputs_of_one_ds_stand_beside_the_former_ones(tmp_path: Path) -> None:
    former = export(tmp_path, catalogue({1: 1.0}))
    newer = export(tmp_path, catalogue({1: 2.0}))
    assert resolve_item_states(tmp_path, checkpoint_id="c", ds="2001-02-21") == newer.path
    # A run that pinned the former one goes on with it.
    assert load_item_states(former.path).items.vector_RD.tolist() == [[1.0, 1.0]]


def test_an_export_is_current_for_exactly_what_it_was_made_from(tmp_path: Path) -> None:
    made_from = {"events": ["id", 7]}
    arguments = {"checkpoint_id": "c", "ds": "2001-02-21"}
    assert not is_current(tmp_path, **arguments, provenance=made_from)
    export_item_states(tmp_path, **arguments, catalogue=catalogue({1: 1.0}), encode=encode, provenance=made_from)
    assert is_current(tmp_path, **arguments, provenance=made_from)
    assert not is_current(tmp_path, **arguments, provenance={"events": ["id", 8]})
    export(tmp_path, catalogue({1: 2.0}))
    assert not is_current(tmp_path, **arguments, provenance=made_from)


def test_exports_of_a_former_format_are_neither_current_nor_copied_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_from, items = {"events": ["id", 7]}, catalogue({1: 1.0, 2: 2.0})
    arguments: dict[str, Any] = {"checkpoint_id": "c", "ds": "2001-02-21", "provenance": made_from}
    export_item_states(tmp_path, **arguments, catalogue=items, encode=encode)
    monkeypatch.setattr(item_states, "FORMAT_VERSION", item_states.FORMAT_VERSION + 1)
    assert not is_current(tmp_path, **arguments)
    with pytest.raises(InputError, match="another format"):
        load_item_states(resolve_item_states(tmp_path, checkpoint_id="c", ds="2001-02-21"))
    assert export_item_states(tmp_path, **arguments, catalogue=items, encode=encode).encoded_rows == 2
    assert is_current(tmp_path, **arguments)


def test_ids_that_share_a_version_do_not_exist(tmp_path: Path) -> None:
    versions = {
        catalogue({1: 1.0}).items_version,
        catalogue({2: 1.0}).items_version,
        catalogue({1: 2.0}).items_version,
        catalogue({1: 1.0}, string_ids=True).items_version,
        catalogue({2: 1.0}, string_ids=True).items_version,
    }
    assert len(versions) == 5


def cut(path: Path) -> None:
    """Take the last byte off."""
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    """Take the file away."""
    path.unlink()


@pytest.mark.parametrize("name", ["states.safetensors", "inputs.safetensors", "ids.arrow", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, remove])
def test_a_damaged_export_is_refused_by_name(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = export(tmp_path, catalogue({1: 1.0, 2: 2.0}, string_ids=True)).path
    if name == "manifest.json" and damage is cut:
        # Still JSON, but another export's.
        manifest = json.loads((path / name).read_bytes())
        (path / name).write_text(json.dumps({**manifest, "items_version": "0"}))
    else:
        damage(path / name)
    with pytest.raises(InputError, match=rf"{name}.*run jobs/export_items\.py"):
        load_item_states(path)


def test_a_missing_day_names_those_that_there_are(tmp_path: Path) -> None:
    export(tmp_path, catalogue({1: 1.0}), ds="2001-02-20")
    with pytest.raises(InputError, match=r"for 2001-02-21 \(it has 2001-02-20\); run jobs/export_items\.py --ds 2001"):
        resolve_item_states(tmp_path, checkpoint_id="c", ds="2001-02-21")


def test_states_are_mapped_and_not_copied(tmp_path: Path) -> None:
    states = load_item_states(export(tmp_path, catalogue(dict.fromkeys(range(2000), 1.0))).path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux says what is mapped")
    assert str(states.path / "states.safetensors") in maps.read_text()
