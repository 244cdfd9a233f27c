"""Item states on disk: what a checkpoint's `encode_items` gives for a whole catalogue as of a `ds`. No JVM.

`<item states>/<checkpoint id>/<ds>/<items version>/` holds
- `states.safetensors`: `key_R` (int64, ascending) and the tensors of `ItemState`; mapped into memory, so that all
  Python workers of a host share one copy;
- `ids.arrow`: for STRING ids alone, the ids in the order of the keys (a key is Spark's xxhash64 of the id);
- `inputs.safetensors`: the encoded features, by which the next export knows which rows changed;
- `manifest.json`: the SHA-256 of each, and the items version: the hash of ids and inputs.
`<ds>/latest` names the items version that is current, `<ds>/provenance.json` the table versions that it was made from.
Folders are renamed into place and never changed.

Legend: R items, C columns of categorical features, F numeric features, M columns of match fields, V raw values, D model
width.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from gesr_core.content import check_files, json_bytes, replace_file, sha256_of
from gesr_core.errors import AnotherRunWon, InputError
from gesr_core.failpoints import reach
from gesr_core.model.inputs import ItemFeatures, ItemState
from gesr_core.runtime.item_index import ItemIndex

FORMAT_VERSION: Final = 2
MANIFEST, STATES, INPUTS, IDS = "manifest.json", "states.safetensors", "inputs.safetensors", "ids.arrow"
LATEST, PROVENANCE = "latest", "provenance.json"
# Rows are encoded in blocks of one shape, so that a row's state does not depend on how many others are new with it.
BLOCK_ROWS: Final = 8192
_VERSION_DIGITS: Final = 16
_REMEDY: Final = "run jobs/export_items.py"

Encode = Callable[[ItemFeatures], ItemState]


@dataclass(frozen=True)
class Catalogue:
    """The items of a `ds`, encoded and sorted by (key, id): what an export is made from.

    `value_R` holds the ids of STRING items, None for BIGINT ids, which are their own keys.
    """

    key_R: Tensor
    value_R: pa.Array | None
    features: ItemFeatures

    @property
    def items_version(self) -> str:
        """The hash of the ids and of the encoded inputs; exports of another format have other versions."""
        digest = hashlib.sha256(f"format {FORMAT_VERSION}\n".encode())
        for tensor in (self.key_R, *_inputs(self.features).values(), self.features.match_RM):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        if self.value_R is not None:
            digest.update(_ids_bytes(self.value_R))
        return digest.hexdigest()[:_VERSION_DIGITS]


@dataclass(frozen=True)
class ItemStates:
    """An export that was opened: the states, mapped into memory, and the index from ids to their rows."""

    path: Path
    manifest: Mapping[str, Any]
    items: ItemState
    index: ItemIndex

    @property
    def items_version(self) -> str:
        """The content hash of what was encoded."""
        return str(self.manifest["items_version"])


@dataclass(frozen=True)
class Exported:
    """What an export did: where it lies, and how many rows it encoded anew (the others were copied)."""

    path: Path
    rows: int
    encoded_rows: int


def export_item_states(
    root: Path,
    *,
    checkpoint_id: str,
    ds: str,
    catalogue: Catalogue,
    encode: Encode,
    provenance: Mapping[str, Any] | None = None,
    since: str | None = None,
) -> Exported:
    """Write the states of a catalogue, and make them current for `ds`.

    Rows whose inputs are those of the newest earlier export of the checkpoint are copied from it. An export that exists
    is left as it is.

    Args:
        root: the folder of all item states.
        checkpoint_id: whose states these are.
        ds: the day as of which the catalogue was read.
        catalogue: the encoded items.
        encode: the checkpoint's `encode_items`.
        provenance: what the catalogue was made from, for `is_current`.
        since: what was current (`current_export`) when the catalogue was read; default: what is so now.

    Raises:
        AnotherRunWon: another export became current meanwhile; this one's rows are there, and nothing names them.
    """
    folder = root / checkpoint_id / ds
    path = folder / catalogue.items_version
    former = current_export(root, checkpoint_id=checkpoint_id, ds=ds) if since is None else since
    rows, encoded_rows = len(catalogue.key_R), 0
    if not (path / MANIFEST).is_file():
        state, encoded_rows = _encode_changed(catalogue, _newest(root / checkpoint_id), encode)
        _write(path, catalogue, state, {"checkpoint_id": checkpoint_id, "ds": ds, "rows": rows})
    reach("item_states_written")
    with FileLock(folder / f".{LATEST}.lock"):
        newest = current_export(root, checkpoint_id=checkpoint_id, ds=ds)
        if newest not in (former, path.name):
            raise AnotherRunWon(
                f"item states of {checkpoint_id} for {ds} were made {newest} by another export while this one worked; "
                "this one changed nothing: run it again if it read newer tables"
            )
        # First what vouches for the alias goes, then the alias changes: a kill between them costs a second export.
        (folder / PROVENANCE).unlink(missing_ok=True)
        replace_file(folder / LATEST, f"{path.name}\n".encode())
        if provenance is not None:
            replace_file(folder / PROVENANCE, json_bytes(provenance))
    return Exported(path, rows, encoded_rows)


def current_export(root: Path, *, checkpoint_id: str, ds: str) -> str:
    """Return the items version of the current export of a checkpoint for `ds`; empty where there is none."""
    alias = root / checkpoint_id / ds / LATEST
    return alias.read_text().strip() if alias.is_file() else ""


def is_current(root: Path, *, checkpoint_id: str, ds: str, provenance: Mapping[str, Any]) -> bool:
    """Say whether the export of `ds` was made from exactly this, so that there is nothing to do."""
    recorded = root / checkpoint_id / ds / PROVENANCE
    if not recorded.is_file() or recorded.read_bytes() != json_bytes(provenance):
        return False
    return _is_readable(resolve_item_states(root, checkpoint_id=checkpoint_id, ds=ds))


def resolve_item_states(root: Path, *, checkpoint_id: str, ds: str) -> Path:
    """Return the folder of the current export of a checkpoint for `ds`.

    Raises:
        InputError: there is none; names the days that there are.
    """
    folder = root / checkpoint_id / ds
    if not (folder / LATEST).is_file():
        days = sorted(path.parent.name for path in (root / checkpoint_id).glob(f"*/{LATEST}"))
        there_is = f"it has {', '.join(days[-5:])}" if days else "it has none"
        raise InputError(f"no item states of checkpoint {checkpoint_id} for {ds} ({there_is}); {_REMEDY} --ds {ds}")
    return folder / (folder / LATEST).read_text().strip()


def load_item_states(path: Path, *, verify: bool = True) -> ItemStates:
    """Open an export.

    Args:
        path: its folder.
        verify: compare every file with its hash, which reads it all; the driver does it once, workers need not.

    Raises:
        InputError: the folder or a file is missing, altered, truncated or swapped.
    """
    manifest = _manifest(path)
    if verify:
        check_files(path, manifest["files"], remedy=f"remove {path} and {_REMEDY}")
    tensors = load_file(path / STATES)
    key_R = tensors.pop("key_R")
    state = ItemState.of(tensors)
    values = read_ids(path / IDS) if IDS in manifest["files"] else None
    return ItemStates(path, manifest, state, ItemIndex.build(key_R, values))


def states_bytes(path: Path) -> int:
    """Return what the states of an export take in memory."""
    return (path / STATES).stat().st_size


def read_ids(path: Path) -> pa.Array:
    """Return the STRING ids of an export, mapped into memory."""
    with pa.memory_map(str(path)) as source:
        column = pa.ipc.open_file(source).read_all().column(0)
    return column.chunk(0) if column.num_chunks else pa.array([], pa.string())


def _encode_changed(catalogue: Catalogue, earlier: Path | None, encode: Encode) -> tuple[ItemState, int]:
    """Encode the rows that `earlier` does not hold with the same inputs; copy the others."""
    source_R = torch.full_like(catalogue.key_R, -1)
    former = None
    if earlier is not None:
        former = load_item_states(earlier)
        source_R = _unchanged(catalogue, former)
    changed = (source_R < 0).nonzero().squeeze(1)
    fresh = _encode_blocks(catalogue.features.take(changed), encode)
    kept = (source_R >= 0).nonzero().squeeze(1)
    states = {}
    for name, fresh_RX in fresh.tensors().items():
        states[name] = fresh_RX.new_empty(len(source_R), *fresh_RX.shape[1:])
        states[name][changed] = fresh_RX
        if former is not None:
            states[name][kept] = former.items.tensors()[name][source_R[kept]]
    # Match ids are numbered anew for each table: they are never copied.
    return ItemState.of({**states, "match_RM": catalogue.features.match_RM}), len(changed)


def _unchanged(catalogue: Catalogue, former: ItemStates) -> Tensor:
    """Per row of the catalogue, the row of `former` that has the same id and inputs; -1 where there is none."""
    source_R = former.index.rows(catalogue.key_R, catalogue.value_R)
    inputs = load_file(former.path / INPUTS)
    at_R = source_R.clamp_min(0)
    for name, tensor in _inputs(catalogue.features).items():
        same_R = (inputs[name][at_R] == tensor).reshape(len(at_R), -1).all(1) if len(inputs[name]) else at_R < 0
        source_R = torch.where(same_R, source_R, -1)
    return source_R


@torch.inference_mode()
def _encode_blocks(features: ItemFeatures, encode: Encode) -> ItemState:
    """Encode rows in blocks of BLOCK_ROWS; the last is filled up with copies of its first row."""
    rows = len(features.index_R)
    blocks = []
    for start in range(0, max(rows, 1), BLOCK_ROWS):
        place = torch.arange(start, start + BLOCK_ROWS)
        count = min(rows - start, BLOCK_ROWS)
        block = features.take(torch.where(place < rows, place, start)) if rows else _no_item(features)
        state = encode(block)
        blocks.append({name: tensor[:count].cpu() for name, tensor in state.tensors().items()})
    return ItemState.of({name: torch.cat([block[name] for block in blocks]) for name in blocks[0]})


def _no_item(features: ItemFeatures) -> ItemFeatures:
    """One row of zeros: its state has the widths that an empty one needs."""
    return features.map(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]))


def _write(path: Path, catalogue: Catalogue, state: ItemState, facts: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        save_file({"key_R": catalogue.key_R, **_contiguous(state.tensors())}, draft / STATES)
        save_file(_contiguous(_inputs(catalogue.features)), draft / INPUTS)
        names = [STATES, INPUTS]
        if catalogue.value_R is not None:
            (draft / IDS).write_bytes(_ids_bytes(catalogue.value_R))
            names.append(IDS)
        hashes = {name: sha256_of(draft / name) for name in names}
        manifest = {**facts, "format_version": FORMAT_VERSION, "items_version": path.name, "files": hashes}
        (draft / MANIFEST).write_bytes(json_bytes(manifest))
        # mkdtemp makes a private folder; executors may run as another user.
        draft.chmod(0o755)
        try:
            draft.rename(path)
        except OSError:
            # Another export of the same content was quicker.
            if not (path / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _newest(folder: Path) -> Path | None:
    """The current export of the latest `ds` of a checkpoint that has one of this format."""
    aliases = sorted(folder.glob(f"*/{LATEST}"), reverse=True)
    exports = (alias.parent / alias.read_text().strip() for alias in aliases)
    return next(filter(_is_readable, exports), None)


def _is_readable(path: Path) -> bool:
    """Say whether an export is there and of this format."""
    manifest = path / MANIFEST
    return manifest.is_file() and json.loads(manifest.read_bytes())["format_version"] == FORMAT_VERSION


def _manifest(path: Path) -> dict[str, Any]:
    if not (path / MANIFEST).is_file():
        raise InputError(f"{path} holds no item states: it has no {MANIFEST}; {_REMEDY}")
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    if manifest["format_version"] != FORMAT_VERSION or manifest["items_version"] != path.name:
        raise InputError(f"{path}/{MANIFEST} is another export's or another format's; remove the folder and {_REMEDY}")
    return manifest


def _inputs(features: ItemFeatures) -> dict[str, Tensor]:
    return {
        "index_R": features.index_R,
        "categorical_RC": features.categorical_RC,
        "numeric_RF": features.numeric_RF,
        "raw_RV": features.raw_RV,
    }


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _ids_bytes(values: pa.Array) -> bytes:
    table = pa.table({"item_id": pa.array(values, pa.string())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        # One batch: the ids are read back as one array.
        writer.write_batch(pa.RecordBatch.from_arrays([values], schema=table.schema))
    return sink.getvalue().to_pybytes()
