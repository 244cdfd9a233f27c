"""Vocabularies and statistics: fitted on the training dates alone, kept in the checkpoint, applied wherever models run.

Runs anywhere; Arrow and torch, no JVM. Everything fitted is sorted, so that the same rows in another order give the
same `FeatureSpace`, byte for byte as JSON.

Legend: R items, B requests, C categorical features, F numeric features, M match fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gesr_core.config import FeaturesConfig
from gesr_core.errors import InputError
from gesr_core.model.build import ModelSizes
from gesr_core.model.inputs import ItemFeatures, UserFeatures
from gesr_core.names import Col, user_feature

# Ours: a value that far outside what training saw says no more than that it is far outside.
MAX_NORMALISED = 10.0


class Encoder(Protocol):
    """What a vocabulary and a normaliser have in common."""

    @property
    def name(self) -> str:
        """The feature's name."""

    def encode(self, column: pa.Array) -> np.ndarray:
        """Turn a column into numbers."""


@dataclass(frozen=True)
class Vocabulary:
    """A categorical feature's values, as text and sorted; an index is the place plus 1, 0 is unknown or missing."""

    name: str
    values: tuple[str, ...]

    def encode(self, column: pa.Array) -> np.ndarray:
        """Return the int64 indices of a column's values."""
        return _places(_text(column), pa.array(self.values, pa.string())) + 1


@dataclass(frozen=True)
class Normaliser:
    """A numeric feature's transform, and mean and standard deviation after it."""

    name: str
    transform: str
    mean: float
    std: float

    def encode(self, column: pa.Array) -> np.ndarray:
        """Return the float32 normalised values; missing (null or not finite) stands at 0, the mean."""
        normalised = (transformed(column, self.transform) - self.mean) / self.std
        return np.nan_to_num(np.clip(normalised, -MAX_NORMALISED, MAX_NORMALISED)).astype(np.float32)


@dataclass(frozen=True)
class FeatureSpace:
    """All that turns raw columns into a model's inputs.

    `item_ids` are ints (BIGINT ids) or texts (STRING ids). `match_fields` are item columns; `match_pairs` index into
    them as (history field, candidate field). `task_logits` are the logits of the tasks' base rates.
    """

    item_ids: tuple[int, ...] | tuple[str, ...]
    item_categories: tuple[Vocabulary, ...]
    item_numerics: tuple[Normaliser, ...]
    user_categories: tuple[Vocabulary, ...]
    user_numerics: tuple[Normaliser, ...]
    actions: tuple[str, ...]
    match_fields: tuple[str, ...]
    match_pairs: tuple[tuple[int, int], ...]
    max_history: int
    tasks: tuple[str, ...]
    task_logits: tuple[float, ...]

    @property
    def sizes(self) -> ModelSizes:
        """What the model's shapes depend on."""
        return ModelSizes(
            item_ids=len(self.item_ids) + 1,
            item_categories=tuple(len(v.values) + 1 for v in self.item_categories),
            item_numerics=len(self.item_numerics),
            user_categories=tuple(len(v.values) + 1 for v in self.user_categories),
            user_numerics=len(self.user_numerics),
            actions=len(self.actions) + 1,
            match_pairs=self.match_pairs,
            max_history=self.max_history,
            task_logits=self.task_logits,
        )

    def encode_items(self, items: pa.Table) -> ItemFeatures:
        """Encode an item table (item_id, declared features, declared statistics), row by row.

        Match ids number the values of the whole table jointly over all match fields, so they also tell apart values
        that training never saw; they are comparable within this table only.

        Raises:
            InputError: a declared column is missing.
        """
        _require(items.column_names, [Col.ITEM_ID, *_names(self.item_categories), *_names(self.item_numerics)])
        ids = items.column(Col.ITEM_ID).combine_chunks()
        index_R = _places(ids, pa.array(self.item_ids, ids.type)) + 1
        return ItemFeatures(
            index_R=torch.from_numpy(index_R),
            categorical_RC=_encoded(self.item_categories, items, rows=len(ids), dtype=np.int64),
            numeric_RF=_encoded(self.item_numerics, items, rows=len(ids), dtype=np.float32),
            match_RM=match_ids(items, self.match_fields),
        )

    def encode_users(self, batch: pa.RecordBatch) -> UserFeatures:
        """Encode the user feature columns of request rows.

        Raises:
            InputError: a declared column is missing.
        """
        names = [*_names(self.user_categories), *_names(self.user_numerics)]
        _require(batch.schema.names, [user_feature(name) for name in names])
        columns = {name: batch.column(user_feature(name)) for name in names}
        return UserFeatures(
            _encoded(self.user_categories, columns, rows=batch.num_rows, dtype=np.int64),
            _encoded(self.user_numerics, columns, rows=batch.num_rows, dtype=np.float32),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> FeatureSpace:
        """Read what `to_json` gave."""

        def vocabularies(key: str) -> tuple[Vocabulary, ...]:
            return tuple(Vocabulary(v["name"], tuple(v["values"])) for v in data[key])

        return FeatureSpace(
            item_ids=tuple(data["item_ids"]),
            item_categories=vocabularies("item_categories"),
            item_numerics=tuple(Normaliser(**n) for n in data["item_numerics"]),
            user_categories=vocabularies("user_categories"),
            user_numerics=tuple(Normaliser(**n) for n in data["user_numerics"]),
            actions=tuple(data["actions"]),
            match_fields=tuple(data["match_fields"]),
            match_pairs=tuple((int(history), int(candidate)) for history, candidate in data["match_pairs"]),
            max_history=int(data["max_history"]),
            tasks=tuple(data["tasks"]),
            task_logits=tuple(data["task_logits"]),
        )


@dataclass(frozen=True)
class RequestFacts:
    """What is fitted on the training requests."""

    user_categories: tuple[Vocabulary, ...]
    user_numerics: tuple[Normaliser, ...]
    actions: tuple[str, ...]


def fit_feature_space(
    features: FeaturesConfig,
    *,
    items: pa.Table,
    item_events: pa.Table,
    requests: RequestFacts,
    max_history: int,
    task_logits: Mapping[str, float],
) -> FeatureSpace:
    """Fit on the training dates.

    Args:
        features: the declared features.
        items: the item tables of the training dates, one after the other; no date of validation.
        item_events: (item_id, events) counted strictly before the first validation request time. Labels of the training
            dates come from before it too, so nothing from it on has any influence.
        requests: what `fit_requests` found in the training requests.
        max_history: the longest history, in events.
        task_logits: per task, the logit of its base rate.
    """
    categorical = [f.name for f in features.item if f.kind == "categorical"]
    numeric = [(f.name, f.transform) for f in features.item if f.kind == "numeric"]
    numeric += [(f.name, f.transform) for f in features.item_statistics]
    fields = sorted({name for pair in features.hard_match for name in (pair.history, pair.candidate)})
    known = item_events.filter(pc.greater_equal(item_events["events"], features.item_id_min_events))
    return FeatureSpace(
        item_ids=tuple(pc.unique(known[Col.ITEM_ID]).sort().to_pylist()),
        item_categories=tuple(_vocabulary(name, [items.column(name)]) for name in categorical),
        item_numerics=tuple(_normaliser(name, transform, [items.column(name)]) for name, transform in numeric),
        user_categories=requests.user_categories,
        user_numerics=requests.user_numerics,
        actions=requests.actions,
        match_fields=tuple(fields),
        match_pairs=tuple((fields.index(p.history), fields.index(p.candidate)) for p in features.hard_match),
        max_history=max_history,
        tasks=tuple(task_logits),
        task_logits=tuple(task_logits.values()),
    )


def fit_requests(batches: Iterable[pa.RecordBatch], features: FeaturesConfig) -> RequestFacts:
    """Fit user features and the actions on training requests; one pass, memory of distinct values and numbers alone."""
    columns: dict[str, list[pa.Array]] = {user_feature(f.name): [] for f in features.user}
    actions: list[pa.Array] = [pa.array([], pa.string())]
    for batch in batches:
        for f in features.user:
            column = batch.column(user_feature(f.name))
            columns[user_feature(f.name)].append(pc.unique(column) if f.kind == "categorical" else column)
        actions.append(pc.unique(batch.column(Col.HISTORY_ACTION).flatten()))
    categorical = [f for f in features.user if f.kind == "categorical"]
    numeric = [f for f in features.user if f.kind == "numeric"]
    return RequestFacts(
        tuple(_vocabulary(f.name, columns[user_feature(f.name)]) for f in categorical),
        tuple(_normaliser(f.name, f.transform, columns[user_feature(f.name)]) for f in numeric),
        _vocabulary(Col.ACTION, actions).values,
    )


def match_ids(items: pa.Table, fields: Sequence[str]) -> Tensor:
    """Return match_RM (int32): ids that are equal exactly where the values are, over all fields together; null is 0."""
    columns = [items.column(name).combine_chunks() for name in fields]
    if len({column.type for column in columns}) > 1:
        columns = [_text(column) for column in columns]
    if not columns:
        return torch.zeros(items.num_rows, 0, dtype=torch.int32)
    # Sorted, so that ids depend on the values alone and not on the order of rows.
    values = pc.unique(pa.chunked_array(columns)).drop_null().sort()
    return torch.from_numpy(np.stack([_places(column, values) + 1 for column in columns], axis=1)).to(torch.int32)


def transformed(column: pa.Array | pa.ChunkedArray, transform: str) -> np.ndarray:
    """Return a numeric column as float64 after `transform`, NaN where it is null or not finite."""
    numbers = pc.fill_null(pc.cast(column, pa.float64()), float("nan")).to_numpy(zero_copy_only=False)
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    # log1p keeps the sign, so that a negative number is not lost.
    return np.sign(finite) * np.log1p(np.abs(finite)) if transform == "log1p" else finite


def _vocabulary(name: str, columns: Sequence[pa.Array | pa.ChunkedArray]) -> Vocabulary:
    distinct = [pc.unique(_text(column)).drop_null() for column in columns]
    return Vocabulary(name, tuple(sorted({value for array in distinct for value in array.to_pylist()})))


def _normaliser(name: str, transform: str, columns: Sequence[pa.Array | pa.ChunkedArray]) -> Normaliser:
    # Sorted: a float sum depends on its order, and the order of rows must not matter.
    numbers = np.sort(np.concatenate([np.zeros(0), *(transformed(column, transform) for column in columns)]))
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        return Normaliser(name, transform, 0.0, 1.0)
    std = float(numbers.std())
    return Normaliser(name, transform, float(numbers.mean()), std if std > 0 else 1.0)


def _encoded(
    features: Sequence[Encoder],
    columns: Mapping[str, pa.Array] | pa.Table,
    *,
    rows: int,
    dtype: Any,
) -> Tensor:
    encoded = np.empty((rows, len(features)), dtype=dtype)
    for i, feature in enumerate(features):
        encoded[:, i] = feature.encode(columns[feature.name])
    return torch.from_numpy(encoded)


def _places(column: pa.Array | pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    """Each value's place in `values`, -1 for null and for values that are not there."""
    places = pc.fill_null(pc.index_in(column, value_set=values, skip_nulls=True), -1)
    return places.to_numpy(zero_copy_only=False).astype(np.int64)


def _text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return column if pa.types.is_string(column.type) else pc.cast(column, pa.string())


def _names(features: Sequence[Encoder]) -> list[str]:
    return [feature.name for feature in features]


def _require(present: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise InputError(f"the model was trained with {missing}, but the rows have only {list(present)}")
