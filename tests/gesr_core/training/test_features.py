"""Vocabularies, statistics and match ids."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
import pytest
import torch

from gesr_core.config import FeaturesConfig
from gesr_core.errors import ConfigurationError, InputError
from gesr_core.model.event_signals import EventSignal
from gesr_core.ops.matching import MatchPair
from gesr_core.training.features import FeatureSpace, Vocabulary, fit_feature_space, fit_requests

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


def fit(items: pa.Table = ITEMS, events: pa.Table = EVENTS, features: FeaturesConfig = FEATURES) -> FeatureSpace:
    """Fit on the tables above."""
    return fit_feature_space(
        features, items=items, item_events=events, requests=fit_requests(REQUESTS, FEATURES), max_history=4,
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


RICH = FeaturesConfig.model_validate(
    {
        "item": [
            {"name": "topics", "kind": "multi", "max_values": 2},
            {"name": "creator", "kind": "categorical"},
            {"name": "length_s", "kind": "numeric"},
        ],
        "user": [{"name": "likes", "kind": "multi", "max_values": 3}, {"name": "height_cm", "kind": "numeric"}],
        "event_signals": [
            {"name": "skipped", "kind": "below_share", "share": 0.3, "of": "length_s"},
            {"name": "again", "kind": "repeat"},
        ],
        "hard_match": [
            {"history": "topics", "candidate": "topics"},
            {"history": "creator", "candidate": "creator", "window_days": 7, "actions": ["view", "buy"]},
        ],
        "item_id_min_events": 1,
    }
)
RICH_ITEMS = pa.table(
    {
        "item_id": [10, 20, 30],
        "topics": pa.array([[7, 5, 7], None, [40, 5, 6]], pa.list_(pa.int64())),
        "creator": ["5", None, "7"],
        "length_s": [60.0, None, 30.0],
    }
)


def fit_rich(items: pa.Table = RICH_ITEMS, *, actions: Sequence[str] = ("buy", "view")) -> FeatureSpace:
    """Fit lists, signals and narrowed pairs."""
    likes = pa.array([["x", "y"], [], None], pa.list_(pa.string()))
    requests = pa.RecordBatch.from_pydict(
        {"user_likes": likes, "user_height_cm": [1.0, 2.0, 3.0], "history_action": [list(actions), [], []]}
    )
    return fit_feature_space(
        RICH, items=items, item_events=EVENTS, requests=fit_requests([requests], RICH), max_history=4,
        task_logits={"bought": -3.0}, history_window_days=30,
    )  # fmt: skip


def test_lists_become_as_many_columns_as_they_may_hold() -> None:
    space = fit_rich()
    # In the order of texts "40" comes before "5", and 6 is the third.
    assert space.item_categories[0] == Vocabulary("topics", ("40", "5", "7"), 2)
    encoded = space.encode_items(RICH_ITEMS)
    assert encoded.categorical_RC.tolist() == [[2, 3, 1], [0, 0, 0], [1, 2, 2]]
    assert encoded.raw_RV.tolist() == [[60.0], [0.0], [30.0]]
    users = pa.RecordBatch.from_pydict(
        {"user_likes": pa.array([["z", "y"], None], pa.list_(pa.string())), "user_height_cm": [1.0, 2.0]}
    )
    assert space.encode_users(users).categorical_BC.tolist() == [[2, 0, 0], [0, 0, 0]]
    sizes = space.sizes
    assert (sizes.item_categories, sizes.item_category_columns) == ((4, 3), (2, 1))
    assert (sizes.user_category_columns, sizes.match_columns) == ((3,), (1, 2))
    assert space.user_lists == ("likes",)


def test_lists_match_element_by_element_also_with_other_fields() -> None:
    # Fields in order: creator, topics. Topics are integers and creators texts: texts are compared.
    creator_topics = fit_rich().encode_items(RICH_ITEMS).match_RM.tolist()
    five, seven, forty = creator_topics[0][0], creator_topics[2][0], creator_topics[2][1]
    assert creator_topics == [[five, five, seven], [0, 0, 0], [seven, forty, five]]
    assert len({five, seven, forty, 0}) == 4


def test_pairs_are_narrowed_to_days_and_actions() -> None:
    assert fit_rich().match_pairs == (MatchPair(1, 1), MatchPair(0, 0, 7 * 86_400, (1, 2)))
    with pytest.raises(ConfigurationError, match=r"actions \['view'\], which no training history holds .*\['buy'\]"):
        fit_rich(actions=["buy"])


def test_signals_name_the_column_that_they_compare_with() -> None:
    space = fit_rich()
    assert space.event_signals == (EventSignal("below_share", 0.3, 0), EventSignal("repeat"))
    assert space.sizes.event_signals == space.event_signals
    assert space.raw_values == ("length_s",)


def test_lists_of_texts_are_encoded_as_lists_of_integers_are() -> None:
    texts = RICH_ITEMS.set_column(1, "topics", RICH_ITEMS["topics"].cast(pa.list_(pa.string())))
    assert fit_rich(texts).to_json() == fit_rich().to_json()
    as_texts, as_numbers = fit_rich().encode_items(texts), fit_rich().encode_items(RICH_ITEMS)
    assert all(torch.equal(a, b) for a, b in zip(vars(as_texts).values(), vars(as_numbers).values(), strict=True))


def test_a_rich_feature_space_comes_back_from_json() -> None:
    assert FeatureSpace.from_json(json.loads(json.dumps(fit_rich().to_json()))) == fit_rich()


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match=r"trained with \['buyers_7d'\], but the rows have only"):
        fit().encode_items(ITEMS.drop_columns(["buyers_7d"]))
