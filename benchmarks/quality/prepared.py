"""A prepared data set: request rows to learn from and to be measured on, as plain Parquet. Runs anywhere; no JVM.

    train/ learn/<ds>/    thinned request rows (the contract of join.requests.training_requests)
    test/<ds>/            the same and `request_id`; whole candidate lists of requests with a positive, others thinned;
                          `request_us` where request times differ within a ds
    truth/<ds>.parquet    request_id, user_id, item_id, one 0/1 column per task: positives, retrieved or not
    order/<ds>.parquet    request_id, items: retrieval order
    items/<ds>.parquet    item tables as of each ds;  item_events.parquet, events.parquet, manifest.json

Legend: B requests with candidates, P pairs, S tasks, U units (requests with candidates or a positive).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gesr_core.dates import request_time_us
from gesr_core.names import Col, label
from gesr_core.training.readers import RequestReader, open_requests
from gesr_core.training.trainer import TrainingSet

REQUEST_ID: Final = "request_id"
REQUEST_US: Final = "request_us"
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Step:
    """Learn a ds whose labels have closed by the request time of another, and be measured on that one."""

    learn: str
    test: str


@dataclass(frozen=True)
class Regime:
    """The dates of a data set, the same for every trained model.

    `train` is learned first, with `validation` for tuning and early stopping; the first step learns the validation ds.
    """

    train: tuple[str, ...]
    validation: str
    steps: tuple[Step, ...]

    @property
    def tests(self) -> tuple[str, ...]:
        """The ds that are measured."""
        return tuple(step.test for step in self.steps)

    @property
    def learned(self) -> tuple[str, ...]:
        """Every ds that some model learns."""
        return (*self.train, *(step.learn for step in self.steps))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form."""
        steps = [[step.learn, step.test] for step in self.steps]
        return {"train": list(self.train), "validation": self.validation, "steps": steps}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Regime:
        """Read what `to_json` gave."""
        return Regime(tuple(data["train"]), data["validation"], tuple(Step(*pair) for pair in data["steps"]))


@dataclass(frozen=True)
class TestSet:
    """The pairs of one ds on which every ordering is measured, request after request, sorted by item id.

    `weight_P` says for how many pairs a pair stands. Units are the requests with candidates or with a positive;
    `unit_P` and `user_U` index them; `time_us_U` are request times. `truth_*` are all positives.
    """

    # pytest would take the name for a test.
    __test__ = False

    ds: str
    tasks: tuple[str, ...]
    unit_U: np.ndarray
    user_U: np.ndarray
    time_us_U: np.ndarray
    unit_P: np.ndarray
    item_P: np.ndarray
    label_PS: np.ndarray
    weight_P: np.ndarray
    truth_unit: np.ndarray
    truth_item: np.ndarray
    truth_label_S: np.ndarray
    rows: pa.Table

    @cached_property
    def top_item(self) -> int:
        """The item with most positive requests of the first task (of several the smallest id)."""
        items, counts = np.unique(self.truth_item[self.truth_label_S[:, 0] > 0], return_counts=True)
        return int(items[counts.argmax()])

    @cached_property
    def user_P(self) -> np.ndarray:
        """The user of each pair."""
        return self.user_U[self.unit_P]


@dataclass(frozen=True)
class Prepared:
    """An opened folder."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The data set's name."""
        return str(self.manifest["name"])

    @property
    def regime(self) -> Regime:
        """Its dates."""
        return Regime.from_json(self.manifest["regime"])

    @property
    def key(self) -> str:
        """What its content follows from, as a hash."""
        return str(self.manifest["key"])

    def learn(self, ds: str) -> RequestReader:
        """Open the rows of one learned ds."""
        return open_requests("arrow", self.folder / "learn" / ds)

    def items(self, dates: Sequence[str]) -> dict[str, pa.Table]:
        """Read the item tables of some ds."""
        return {ds: pq.read_table(self.folder / "items" / f"{ds}.parquet") for ds in dates}

    def training_set(self) -> TrainingSet:
        """Open what is learned first, with the items of every learned ds.

        Vocabularies and statistics are fitted on the training dates alone: the manifest names them.
        """
        regime = self.regime
        return TrainingSet(
            folder=self.folder,
            manifest={"train_dates": list(regime.train), "validation_date": regime.validation, "key": self.key},
            training=open_requests("arrow", self.folder / "train"),
            validation=self.learn(regime.validation),
            items=self.items(sorted({*regime.learned, regime.validation})),
            item_events=pq.read_table(self.folder / "item_events.parquet"),
        )

    def events_before(self, ds_us: int) -> pa.Table:
        """Read (user_id, item_id, event_us, value) of the events before an instant, in microseconds since 1970."""
        return pq.read_table(self.folder / "events.parquet", filters=[("event_us", "<", ds_us)])

    def test(self, ds: str) -> TestSet:
        """Read the pairs of a measured ds."""
        tasks = tuple(self.manifest["tasks"])
        rows = pq.read_table(self.folder / "test" / ds).combine_chunks()
        truth = pq.read_table(self.folder / "truth" / f"{ds}.parquet")
        request_B, user_B = (_numpy(rows[name]) for name in (REQUEST_ID, Col.USER_ID))
        truth_request = _numpy(truth[REQUEST_ID])
        unit_U, first = np.unique(np.concatenate([request_B, truth_request]), return_index=True)
        user_U = np.concatenate([user_B, _numpy(truth[Col.USER_ID])])[first]
        at_us = request_time_us(ds)
        time_us_B = _numpy(rows[REQUEST_US]) if REQUEST_US in rows.column_names else np.full(len(request_B), at_us)
        count_B = _numpy(pc.list_value_length(rows[Col.CANDIDATE_ITEM_ID]))
        unit_B = np.searchsorted(unit_U, request_B)
        item_P = _flat(rows, Col.CANDIDATE_ITEM_ID)
        unit_P = np.repeat(unit_B, count_B)
        label_PS = np.stack([_flat(rows, label(task)) for task in tasks], axis=1)
        rate_P, sampling_P = (_flat(rows, name).astype(np.float64) for name in (Col.SAMPLING_RATE, Col.SAMPLING_WEIGHT))
        return TestSet(
            ds=ds,
            tasks=tasks,
            unit_U=unit_U,
            user_U=user_U,
            time_us_U=np.concatenate([time_us_B, np.full(len(truth_request), at_us)])[first],
            unit_P=unit_P,
            item_P=item_P,
            label_PS=label_PS,
            weight_P=np.where(label_PS.max(axis=1) > 0, 1.0, 1.0 / rate_P) * sampling_P,
            truth_unit=np.searchsorted(unit_U, truth_request),
            truth_item=_numpy(truth[Col.ITEM_ID]),
            truth_label_S=np.stack([_numpy(truth[label(task)]) for task in tasks], axis=1),
            rows=rows,
        )

    def places(self, test: TestSet) -> np.ndarray:
        """Return the place [P] of each pair of a measured ds in retrieval order, from 0; -1: not retrieved."""
        order = pq.read_table(self.folder / "order" / f"{test.ds}.parquet").combine_chunks()
        counts = _numpy(pc.list_value_length(order["items"]))
        request = np.repeat(_numpy(order[REQUEST_ID]), counts)
        place = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
        return look_up((test.unit_U[test.unit_P], test.item_P), (request, _flat(order, "items")), place)


def open_prepared(folder: Path) -> Prepared:
    """Open a folder that `write_manifest` completed."""
    return Prepared(folder, json.loads((folder / MANIFEST).read_bytes()))


def look_up(
    wanted: tuple[np.ndarray, np.ndarray], keys: tuple[np.ndarray, np.ndarray], values: np.ndarray, *, missing: int = -1
) -> np.ndarray:
    """Return the value of each wanted pair of integers; `keys` are unique pairs."""
    firsts = np.unique(np.concatenate([wanted[0], keys[0]]))
    seconds = np.unique(np.concatenate([wanted[1], keys[1]]))

    def joint(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.searchsorted(firsts, pair[0]) * len(seconds) + np.searchsorted(seconds, pair[1])

    key, searched = joint(keys), joint(wanted)
    if not len(key):
        return np.full(len(searched), missing, dtype=values.dtype)
    order = key.argsort(kind="stable")
    place = np.searchsorted(key[order], searched).clip(max=len(key) - 1)
    found = key[order][place] == searched
    return np.where(found, values[order][place], missing)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()


def _flat(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])
