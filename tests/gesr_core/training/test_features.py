"""Vocabularies, statistics and match ids."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from gesr_core.config import FeaturesConfig
from gesr_core.errors import InputError
from gesr_core.training.features import FeatureSpace, fit_feature_space, fit_requests, match_ids

FEATURES = FeaturesConfig.model_validate(
    {
        "item": [
            {"name": "creator", "kind": "categorical"},
            {"name": "price", "kind": "numeric", "transform": "log1p"},
        ],
        "item_statistics": [{"name": "buyers_7d", "kind": "users", "window_days": 7, "transform": "none"}],
        "user": [{"name": "country", "kind": "categorical"}, {"name": "height_cm", "kind": "numeric"}],
        "hard_match": [
            {"history": "item_id", "candidate": "item_id"},
            {"history": "creator", "candidate": "creator"},
        ],
        "item_id_min_events": 3,
    }
)  # fmt: skip
ITEMS = pa.table(
    {
        "item_id": pa.array([10, 20, 30, 40]),
        "creator": pa.array([7, None, 10, 7]),
        "price": pa.array([0.0, None, 1.718281828459045, 0.0]),
        "buyers_7d": pa.array([1.0, 3.0, float("nan"), 5.0]),
    }
)
EVENTS = pa.table({"item_id": pa.array([40, 10, 30]), "events": pa.array([3, 5, 2])})
REQUESTS = [
    pa.RecordBatch.from_pydict(
        {"user_country": ["se", None], "user_height_cm": [180.0, None], "history_action": [["view", "buy"], []]}
    ),
    pa.RecordBatch.from_pydict(
        {"user_country": ["at"], "user_height_cm": [160.0], "history_action": pa.array([None], pa.list_(pa.string()))}
    ),
]


def fit(items: pa.Table = ITEMS, events: pa.Table = EVENTS) -> FeatureSpace:
    """Fit on the tables above."""
    return fit_feature_space(
        FEATURES, items=items, item_events=events, requests=fit_requests(REQUESTS, FEATURES), max_history=4,
        task_logits={"bought": -3.0},
    )  # fmt: skip


def test_known_values_are_numbered_in_order_and_others_are_0() -> None:
    space = fit()
    assert space.item_ids == (10, 40)
    assert space.actions == ("buy", "view")
    encoded = space.encode_items(ITEMS)
    assert encoded.index_R.tolist() == [1, 0, 0, 2]
    assert encoded.categorical_RC.tolist() == [[2], [0], [1], [2]]
    unseen = pa.table({"item_id": [99], "creator": [8], "price": [0.0], "buyers_7d": [1.0]})
    assert space.encode_items(unseen).categorical_RC.tolist() == [[0]]


def test_numbers_are_normalised_and_missing_ones_stand_at_the_mean() -> None:
    numeric_RF = fit().encode_items(ITEMS).numeric_RF
    assert numeric_RF[:, 0].tolist() == pytest.approx([-0.70711, 0.0, 1.41421, -0.70711], abs=1e-4)
    assert numeric_RF[:, 1].tolist() == pytest.approx([-1.22474, 0.0, 0.0, 1.22474], abs=1e-4)


def test_users_are_encoded_by_their_declared_columns() -> None:
    users = fit().encode_users(REQUESTS[0])
    assert users.categorical_BC.tolist() == [[2], [0]]
    assert users.numeric_BF.tolist() == [[1.0], [0.0]]


def test_a_value_far_outside_is_cut() -> None:
    far = pa.table({"item_id": [10], "creator": [7], "price": [0.0], "buyers_7d": [1e30]})
    assert fit().encode_items(far).numeric_RF[0, 1] == 10


def test_a_constant_column_becomes_0() -> None:
    same = ITEMS.set_column(3, "buyers_7d", pa.array([2.0] * 4))
    assert fit(same).encode_items(same).numeric_RF[:, 1].tolist() == [0.0] * 4


def test_the_order_of_rows_does_not_matter() -> None:
    assert fit(ITEMS.take([2, 0, 3, 1]), EVENTS.take([1, 2, 0])).to_json() == fit().to_json()


def test_a_feature_space_comes_back_from_json() -> None:
    assert FeatureSpace.from_json(json.loads(json.dumps(fit().to_json()))) == fit()


def test_string_ids_are_numbered_too() -> None:
    items = ITEMS.set_column(0, "item_id", pa.array(["a", "b", "c", "d"]))
    events = pa.table({"item_id": ["d", "a", "zz"], "events": [3, 5, 9]})
    space = fit(items, events)
    assert space.item_ids == ("a", "d", "zz")
    assert space.encode_items(items).index_R.tolist() == [1, 0, 0, 2]


def test_match_ids_are_equal_exactly_where_values_are_over_all_fields() -> None:
    ids = match_ids(ITEMS, ["creator", "item_id"]).tolist()
    assert ids == [[1, 2], [0, 3], [2, 4], [1, 5]]  # creator 10 is the item id 10
    assert match_ids(ITEMS, []).shape == (4, 0)


def test_match_ids_of_mixed_types_compare_texts() -> None:
    items = ITEMS.set_column(1, "creator", pa.array(["10", None, "x", "20"]))
    ids = match_ids(items, ["creator", "item_id"])
    assert ids[0, 0] == ids[0, 1]
    assert ids[3, 0] == ids[1, 1]
    assert len(ids.unique()) == 6


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match=r"trained with \['buyers_7d'\], but the rows have only"):
        fit().encode_items(ITEMS.drop_columns(["buyers_7d"]))
