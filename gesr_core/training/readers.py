"""Training request rows from Parquet, by two readers that give the same rows in the same order. Driver only; no JVM.

`arrow` is pyarrow.dataset. `petastorm` is its batch reader, for those whose training stands on it; what it needs is
here alone: the dummy pool (its thread pool gave no rows and no error in 4 % of opens), a TransformSpec that pads ragged
lists (it stacks the lists of a row group into one array), and the versions that it runs on.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from gesr_core.errors import ConfigurationError, InputError

BATCH_ROWS: Final = 8192
# petastorm 0.13.1 imports pyarrow.LocalFileSystem and others, which pyarrow 15 dropped.
PETASTORM_PYARROW_BELOW: Final = 15
_LENGTH: Final = "__length"


@dataclass(frozen=True)
class RequestReader:
    """A folder of Parquet files with request rows, read in the order of the files' names and rows."""

    folder: Path
    files: tuple[Path, ...]
    rows: int
    schema: pa.Schema
    read: Callable[[RequestReader], Iterator[pa.RecordBatch]]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows once.

        Raises:
            InputError: more or fewer rows came than the Parquet footers say.
        """
        rows = 0
        for batch in self.read(self):
            rows += batch.num_rows
            yield batch
        if rows != self.rows:
            raise InputError(f"{self.folder}: {rows} rows were read, but its Parquet footers say {self.rows}")


def open_requests(kind: str, folder: Path) -> RequestReader:
    """Open a folder of request rows with the reader `arrow` or `petastorm`.

    Raises:
        ConfigurationError: an unknown reader, or versions with which petastorm does not work.
        InputError: the folder has no Parquet files.
    """
    readers = {"arrow": _read_arrow, "petastorm": _read_petastorm}
    if kind not in readers:
        raise ConfigurationError(f"training.reader is {kind!r}, which is none of {sorted(readers)}")
    if kind == "petastorm":
        require_petastorm()
    files = tuple(sorted(folder.glob("*.parquet")))
    if not files:
        raise InputError(f"{folder} has no Parquet files; run jobs/train.py, which writes them")
    footers = [pq.read_metadata(path) for path in files]
    schema = footers[0].schema.to_arrow_schema().remove_metadata()
    return RequestReader(folder, files, sum(footer.num_rows for footer in footers), schema, readers[kind])


def require_petastorm() -> None:
    """Refuse versions that are known not to work together.

    Raises:
        ConfigurationError: names the versions and the remedy.
    """
    pyarrow = importlib.metadata.version("pyarrow")
    try:
        petastorm = importlib.metadata.version("petastorm")
    except importlib.metadata.PackageNotFoundError as err:
        raise ConfigurationError(
            "training.reader is petastorm, which is not installed: use training.reader=arrow, which gives the same "
            "rows, or the environment of `make env STACK=petastorm`"
        ) from err
    if int(pyarrow.split(".")[0]) >= PETASTORM_PYARROW_BELOW:
        raise ConfigurationError(
            f"petastorm {petastorm} does not work with pyarrow {pyarrow} (only below {PETASTORM_PYARROW_BELOW}): "
            "use training.reader=arrow, which gives the same rows, or the environment of `make env STACK=petastorm`"
        )


def _read_arrow(reader: RequestReader) -> Iterator[pa.RecordBatch]:
    dataset = pa_dataset.dataset([str(path) for path in reader.files], format="parquet", schema=reader.schema)
    # Few batches ahead: a batch of requests is large, and the reader is not what training waits for.
    yield from dataset.to_batches(batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1)


def _read_petastorm(reader: RequestReader) -> Iterator[pa.RecordBatch]:
    # Only here: importing it fails outside its set of versions.
    from petastorm import make_batch_reader
    from petastorm.transform import TransformSpec

    transform = TransformSpec(_pad_frame(reader.schema), edit_fields=_padded_fields(reader.schema))
    for path in reader.files:
        if not pq.read_metadata(path).num_rows:
            continue
        with make_batch_reader(
            path.absolute().as_uri(),
            reader_pool_type="dummy",
            shuffle_row_groups=False,
            num_epochs=1,
            transform_spec=transform,
        ) as group:
            for rows in group:
                yield _unpadded(rows._asdict(), reader.schema)


def _padded_fields(schema: pa.Schema) -> list[tuple[str, Any, tuple[int | None, ...], bool]]:
    """What the transform makes of each column, in petastorm's terms: (name, numpy type, shape, may be null)."""
    fields: list[tuple[str, Any, tuple[int | None, ...], bool]] = []
    for field in schema:
        if pa.types.is_list(field.type):
            fields.append((field.name, _numpy_type(field.type.value_type), (None,), False))
            fields.append((field.name + _LENGTH, np.int64, (), False))
        elif pa.types.is_string(field.type):
            fields.append((field.name, np.str_, (), False))
    return fields


def _pad_frame(schema: pa.Schema) -> Callable[[Any], Any]:
    """Return a transform of a row group (a pandas frame): lists padded to one length, nulls of texts marked."""

    def transform(frame: Any) -> Any:
        for field in schema:
            if pa.types.is_list(field.type):
                lists = frame[field.name].tolist()
                # A null list and an empty one are told apart by a length of -1.
                lengths = np.array([-1 if values is None else len(values) for values in lists], dtype=np.int64)
                frame[field.name] = list(_padded(lists, lengths, field.type.value_type))
                frame[field.name + _LENGTH] = lengths
            elif pa.types.is_string(field.type):
                frame[field.name] = _marked(frame[field.name].tolist())
        return frame

    return transform


def _padded(lists: Sequence[Any], lengths: np.ndarray, type_: pa.DataType) -> np.ndarray:
    kept = [values for values in lists if values is not None and len(values)]
    flat = np.concatenate(kept) if kept else np.zeros(0)
    if pa.types.is_string(type_):
        flat = np.array(_marked(flat.tolist()), dtype=object)
    padded = np.zeros((len(lists), max(0, int(lengths.max(initial=0)))), dtype=flat.dtype if kept else np.float64)
    if pa.types.is_string(type_):
        padded = np.full(padded.shape, "", dtype=object)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = flat
    return padded


def _unpadded(columns: dict[str, np.ndarray], schema: pa.Schema) -> pa.RecordBatch:
    """Rebuild request rows from what petastorm gave: one array per column."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if pa.types.is_list(field.type):
            arrays.append(_lists(values, columns[field.name + _LENGTH], field.type))
        else:
            arrays.append(_array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _lists(padded: np.ndarray, lengths: np.ndarray, type_: pa.ListType) -> pa.ListArray:
    flat = padded[np.arange(padded.shape[1]) < lengths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0))]).astype(np.int32)
    # A null offset makes the list that begins there null.
    null = np.append(lengths < 0, False)
    return pa.ListArray.from_arrays(pa.array(offsets, mask=null), _array(flat, type_.value_type)).cast(type_)


def _array(values: np.ndarray, type_: pa.DataType) -> pa.Array:
    if pa.types.is_string(type_):
        texts = pa.array(values.tolist(), pa.string())
        known = pc.greater(pc.utf8_length(texts), 0)
        return pc.if_else(known, pc.utf8_slice_codeunits(texts, 1), pa.scalar(None, pa.string()))
    if values.dtype.kind in "fO":
        # pandas has NaN where a number is null.
        return pa.array(values.astype(np.float64), from_pandas=True).cast(type_)
    return pa.array(values).cast(type_)


def _marked(texts: Sequence[str | None]) -> list[str]:
    """Put a mark before each text: petastorm turns a null into the text 'None'."""
    return ["" if text is None else "=" + text for text in texts]


def _numpy_type(type_: pa.DataType) -> Any:
    return np.str_ if pa.types.is_string(type_) else type_.to_pandas_dtype()
