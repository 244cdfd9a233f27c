"""Vocabularies and statistics: fitted on the training dates alone, kept in the checkpoint, applied wherever models run.

Runs anywhere; Arrow and torch, no JVM. Everything fitted is sorted, so that the same rows in another order give the
same `FeatureSpace`, byte for byte as JSON.

Legend: R items, B requests, C columns of the categorical features (one each; `max_values` of a multi-valued one), F
numeric features, M columns of the match fields, V raw values that event signals compare with, W columns of one field.
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

from gesr_core.config import Feature, FeaturesConfig, HardMatch
from gesr_core.errors import ConfigurationError, InputError
from gesr_core.model.event_signals import EventSignal
from gesr_core.model.inputs import ItemFeatures, UserFeatures
from gesr_core.model.sizes import ModelSizes
from gesr_core.names import Col, user_feature
from gesr_core.ops.matching import MatchPair
from gesr_core.training.columns import first_values, match_ids, places, text, transformed

# Ours: a value that far outside what training saw says no more than that it is far outside.
MAX_NORMALISED = 10.0


class Encoder(Protocol):
    """What a vocabulary and a normaliser have in common."""

    @property
    def name(self) -> str:
        """The feature's name."""

    @property
    def columns(self) -> int:
        """How many numbers a row becomes."""

    def encode(self, column: pa.Array) -> np.ndarray:
        """Turn a column of R rows into numbers, [R] or [R, columns]."""


@dataclass(frozen=True)
class Vocabulary:
    """A categorical feature's values, as text and sorted; an index is the place plus 1, 0 is unknown or missing.

    With `max_values` the feature is multi-valued: its column holds lists, of which `first_values` are encoded.
    """

    name: str
    values: tuple[str, ...]
    max_values: int | None = None

    @property
    def columns(self) -> int:
        """How many indices a row becomes."""
        return self.max_values or 1

    def encode(self, column: pa.Array) -> np.ndarray:
        """Return the int64 indices of a column's values: [R], or [R, max_values] of lists, 0 after their end."""
        known = pa.array(self.values, pa.string())
        if self.max_values is None:
            return places(text(column), known) + 1
        lists = first_values(column, max_values=self.max_values)
        return lists.spread(places(text(lists.values), known) + 1)


@dataclass(frozen=True)
class Normaliser:
    """A numeric feature's transform, and mean and standard deviation after it."""

    name: str
    transform: str
    mean: float
    std: float

    @property
    def columns(self) -> int:
        """How many numbers a row becomes."""
        return 1

    def encode(self, column: pa.Array) -> np.ndarray:
        """Return the float32 normalised values; missing (null or not finite) stands at 0, the mean."""
        normalised = (transformed(column, self.transform) - self.mean) / self.std
        return np.nan_to_num(np.clip(normalised, -MAX_NORMALISED, MAX_NORMALISED)).astype(np.float32)


@dataclass(frozen=True)
class FeatureSpace:
    """All that turns raw columns into a model's inputs.

    `item_ids` are ints (BIGINT ids) or texts (STRING ids). `match_fields` are item columns; `match_pairs` index into
    them. `raw_values` are the item columns that event signals compare with. Events older than `history_window_days` are
    in no history. `task_logits` are the logits of the tasks' base rates.
    """

    item_ids: tuple[int, ...] | tuple[str, ...]
    item_categories: tuple[Vocabulary, ...]
    item_numerics: tuple[Normaliser, ...]
    user_categories: tuple[Vocabulary, ...]
    user_numerics: tuple[Normaliser, ...]
    actions: tuple[str, ...]
    match_fields: tuple[str, ...]
    match_pairs: tuple[MatchPair, ...]
    max_history: int
    tasks: tuple[str, ...]
    task_logits: tuple[float, ...]
    event_signals: tuple[EventSignal, ...] = ()
    raw_values: tuple[str, ...] = ()
    history_window_days: int | None = None

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
            item_category_columns=tuple(v.columns for v in self.item_categories),
            user_category_columns=tuple(v.columns for v in self.user_categories),
            match_columns=tuple(self._match_lists.get(name, 1) for name in self.match_fields),
            event_signals=self.event_signals,
        )

    @property
    def user_lists(self) -> tuple[str, ...]:
        """The user features whose column holds lists."""
        return tuple(v.name for v in self.user_categories if v.max_values)

    @property
    def _match_lists(self) -> dict[str, int]:
        return {v.name: v.max_values for v in self.item_categories if v.max_values and v.name in self.match_fields}

    def encode_items(self, items: pa.Table) -> ItemFeatures:
        """Encode an item table (item_id, declared features, declared statistics), row by row.

        Match ids number the values of the whole table jointly over all match fields, so they also tell apart values
        that training never saw; they are comparable within this table only.

        Raises:
            InputError: a declared column is missing.
        """
        features = [*_names(self.item_categories), *_names(self.item_numerics)]
        _require(items.column_names, [Col.ITEM_ID, *features])
        ids = items.column(Col.ITEM_ID).combine_chunks()
        index_R = places(ids, pa.array(self.item_ids, ids.type)) + 1
        return ItemFeatures(
            index_R=torch.from_numpy(index_R),
            categorical_RC=_encoded(self.item_categories, items, rows=len(ids), dtype=np.int64),
            numeric_RF=_encoded(self.item_numerics, items, rows=len(ids), dtype=np.float32),
            match_RM=match_ids(items, self.match_fields, lists=self._match_lists),
            raw_RV=_raw(items, self.raw_values),
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
            return tuple(Vocabulary(v["name"], tuple(v["values"]), v["max_values"]) for v in data[key])

        return FeatureSpace(
            item_ids=tuple(data["item_ids"]),
            item_categories=vocabularies("item_categories"),
            item_numerics=tuple(Normaliser(**n) for n in data["item_numerics"]),
            user_categories=vocabularies("user_categories"),
            user_numerics=tuple(Normaliser(**n) for n in data["user_numerics"]),
            actions=tuple(data["actions"]),
            match_fields=tuple(data["match_fields"]),
            match_pairs=tuple(
                MatchPair(history, candidate, max_age_s, tuple(actions))
                for history, candidate, max_age_s, actions in data["match_pairs"]
            ),
            max_history=int(data["max_history"]),
            tasks=tuple(data["tasks"]),
            task_logits=tuple(data["task_logits"]),
            event_signals=tuple(EventSignal(*signal) for signal in data["event_signals"]),
            raw_values=tuple(data["raw_values"]),
            history_window_days=data["history_window_days"],
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
    history_window_days: int | None = None,
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
        history_window_days: how far back the requests' histories go; None: as far as they are kept.

    Raises:
        ConfigurationError: a pair of hard matching counts an action that no training history holds.
    """
    numeric = [(f.name, f.transform) for f in features.item if f.kind == "numeric"]
    numeric += [(f.name, f.transform) for f in features.item_statistics]
    fields = sorted({name for pair in features.hard_match for name in (pair.history, pair.candidate)})
    raw_values = sorted({signal.of for signal in features.event_signals if signal.of is not None})
    known = _known_items(item_events, min_events=features.item_id_min_events)
    return FeatureSpace(
        item_ids=known,
        item_categories=tuple(_vocabulary(f, [items.column(f.name)]) for f in features.item if f.kind != "numeric"),
        item_numerics=tuple(_normaliser(name, transform, [items.column(name)]) for name, transform in numeric),
        user_categories=requests.user_categories,
        user_numerics=requests.user_numerics,
        actions=requests.actions,
        match_fields=tuple(fields),
        match_pairs=tuple(_match_pair(pair, fields, actions=requests.actions) for pair in features.hard_match),
        max_history=max_history,
        tasks=tuple(task_logits),
        task_logits=tuple(task_logits.values()),
        event_signals=tuple(
            EventSignal(s.kind) if s.of is None else EventSignal(s.kind, s.share or 0.0, raw_values.index(s.of))
            for s in features.event_signals
        ),
        raw_values=tuple(raw_values),
        history_window_days=history_window_days,
    )


def _known_items(item_events: pa.Table, *, min_events: int) -> tuple[Any, ...]:
    """Return the ids that get an embedding of their own, sorted."""
    seen = item_events.filter(pc.greater_equal(item_events["events"], min_events))
    return tuple(pc.unique(seen[Col.ITEM_ID]).sort().to_pylist())


def fit_requests(batches: Iterable[pa.RecordBatch], features: FeaturesConfig) -> RequestFacts:
    """Fit user features and the actions on training requests; one pass, memory of distinct values and numbers alone."""
    columns: dict[str, list[pa.Array]] = {f.name: [] for f in features.user}
    actions: list[pa.Array] = [pa.array([], pa.string())]
    for batch in batches:
        for f in features.user:
            column = batch.column(user_feature(f.name))
            columns[f.name].append(column if f.kind == "numeric" else pc.unique(_texts(f, column)))
        actions.append(pc.unique(batch.column(Col.HISTORY_ACTION).flatten()))
    numeric = [f for f in features.user if f.kind == "numeric"]
    return RequestFacts(
        tuple(_vocabulary_of(f, columns[f.name]) for f in features.user if f.kind != "numeric"),
        tuple(_normaliser(f.name, f.transform, columns[f.name]) for f in numeric),
        _sorted_values(actions),
    )


def _vocabulary(feature: Feature, columns: Sequence[pa.Array | pa.ChunkedArray]) -> Vocabulary:
    return _vocabulary_of(feature, [_texts(feature, column) for column in columns])


def _vocabulary_of(feature: Feature, texts: Sequence[pa.Array | pa.ChunkedArray]) -> Vocabulary:
    return Vocabulary(feature.name, _sorted_values(texts), feature.max_values if feature.kind == "multi" else None)


def _sorted_values(texts: Sequence[pa.Array | pa.ChunkedArray]) -> tuple[str, ...]:
    distinct = [pc.unique(array).drop_null() for array in texts]
    return tuple(sorted({value for array in distinct for value in array.to_pylist()}))


def _texts(feature: Feature, column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The values of a categorical or multi-valued column, as texts."""
    if feature.kind == "multi":
        column = first_values(column, max_values=feature.max_values).values
    return text(column)


def _match_pair(pair: HardMatch, fields: Sequence[str], *, actions: Sequence[str]) -> MatchPair:
    unknown = [action for action in pair.actions if action not in actions]
    if unknown:
        raise ConfigurationError(
            f"features.hard_match counts actions {unknown}, which no training history holds (they hold {list(actions)})"
        )
    numbers = tuple(sorted({actions.index(action) + 1 for action in pair.actions}))
    max_age_s = None if pair.window_days is None else pair.window_days * 86_400
    return MatchPair(fields.index(pair.history), fields.index(pair.candidate), max_age_s, numbers)


def _raw(items: pa.Table, names: Sequence[str]) -> Tensor:
    raw = np.zeros((items.num_rows, len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        raw[:, i] = np.nan_to_num(transformed(items.column(name), "none"))
    return torch.from_numpy(raw)


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
    parts = [np.empty((rows, 0), dtype=dtype)]
    parts += [feature.encode(columns[feature.name]).reshape(rows, feature.columns) for feature in features]
    return torch.from_numpy(np.concatenate(parts, axis=1))


def _names(features: Sequence[Encoder]) -> list[str]:
    return [feature.name for feature in features]


def _require(present: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise InputError(f"the model was trained with {missing}, but the rows have only {list(present)}")
