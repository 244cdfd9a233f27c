"""Readers of training requests: the same rows, the same order, and no silent loss. No JVM."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gesr_core.errors import ConfigurationError, InputError
from gesr_core.training.readers import open_requests, require_petastorm

SCHEMA = pa.schema(
    [
        ("ds", pa.string()),
        ("user_id", pa.int64()),
        ("user_age_group", pa.string()),
        ("user_height_cm", pa.float64()),
        ("user_topics", pa.list_(pa.string())),
        ("history_item_id", pa.list_(pa.int64())),
        ("history_action", pa.list_(pa.string())),
        ("history_value", pa.list_(pa.float64())),
        ("label_bought", pa.list_(pa.int32())),
        ("sampling_rate", pa.list_(pa.float32())),
        ("exposed", pa.list_(pa.bool_())),
    ]
)
ROWS = [
    ("2001-02-07", 1, "25-29", 170.5, ["a", "bb"], [2**62, 7], ["buy", None], [1.5, None], [1, 0], [1.0, 0.25],
     [True, False]),
    ("2001-02-07", 2, None, None, None, [], [], [], [], [], []),
    ("2001-02-14", 3, "None", 1.0, [], None, ["view"], [2.0], [0], [0.5], [True]),
    ("2001-02-14", 2**60, "", 2.0, ["None", None, ""], [5], ["buy"], [0.0], [0, 0, 1],
     [0.5, 0.5, 1.0], [True, True, True]),
]  # fmt: skip


def write_requests(folder: Path, *, rows: list[tuple[object, ...]] | None = None) -> Path:
    """Write the rows over three files, one of them empty, with row groups of two rows."""
    folder.mkdir(parents=True)
    columns = list(zip(*(rows or ROWS), strict=True))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    pq.write_table(table.slice(0, 3), folder / "part-0.parquet", row_group_size=2)
    pq.write_table(table.slice(0, 0), folder / "part-1.parquet")
    pq.write_table(table.slice(3), folder / "part-2.parquet")
    return folder


def read_rows(kind: str, folder: Path) -> list[dict[str, object]]:
    """Read a folder's rows as dictionaries, in order."""
    reader = open_requests(kind, folder)
    return pa.Table.from_batches(reader.batches(), schema=reader.schema).to_pylist()


def expected_rows() -> list[dict[str, object]]:
    """The rows that were written."""
    return [dict(zip(SCHEMA.names, row, strict=True)) for row in ROWS]


def test_arrow_reads_every_row_in_the_order_of_the_files(tmp_path: Path) -> None:
    assert read_rows("arrow", write_requests(tmp_path / "requests")) == expected_rows()


@pytest.mark.petastorm
def test_petastorm_reads_what_arrow_reads(tmp_path: Path) -> None:
    pytest.importorskip("petastorm", exc_type=ImportError)
    assert read_rows("petastorm", write_requests(tmp_path / "requests")) == expected_rows()


@pytest.mark.parametrize("kind", ["arrow", pytest.param("petastorm", marks=pytest.mark.petastorm)])
def test_a_row_that_does_not_come_is_an_error(kind: str, tmp_path: Path) -> None:
    if kind == "petastorm":
        pytest.importorskip("petastorm", exc_type=ImportError)
    reader = replace(open_requests(kind, write_requests(tmp_path / "requests")), rows=5)
    with pytest.raises(InputError, match="4 rows were read, but its Parquet footers say 5"):
        list(reader.batches())


def test_a_folder_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no Parquet files; run jobs/train\.py"):
        open_requests("arrow", tmp_path)


def test_an_unknown_reader_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"training\.reader is 'arow', which is none of"):
        open_requests("arow", tmp_path)


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"pyarrow": "26.0.1", "petastorm": "0.13.1"}, r"petastorm 0.13.1 does not work with pyarrow 26.0.1"),
        ({"pyarrow": "14.0.2"}, "petastorm, which is not installed"),
    ],
)
def test_versions_without_petastorm_are_refused_with_the_remedy(
    versions: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ConfigurationError, match=message + r".*training\.reader=arrow.*make env STACK=petastorm"):
        require_petastorm()
