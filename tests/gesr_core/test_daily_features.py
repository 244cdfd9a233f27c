"""A toy day whose items and users have lists, with signals, narrowed pairs and a window: published as a plain scorer
scores it, through both transports."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyspark.sql import SparkSession

from gesr_core.dates import request_time
from gesr_core.errors import ConfigurationError, InputError
from gesr_core.io.tables import read_table
from gesr_core.names import Role
from gesr_core.runtime.collate import decode, pad
from gesr_core.runtime.item_states import load_item_states, resolve_item_states
from gesr_core.training.checkpoint import load_checkpoint, resolve_checkpoint
from jobs import export_items, score_daily
from tests.toy import DS, USERS, Toy, toy_candidates, toy_events

pytestmark = pytest.mark.spark

RICH = (
    "features.item=[{name: product_subclass, kind: categorical}, {name: topics, kind: multi, max_values: 2}, "
    "{name: price, kind: numeric}]",
    "features.item_statistics=[{name: buyers_7d, kind: users, window_days: 7}, {name: loyal, kind: repeat_share}]",
    "features.user=[{name: age_group, kind: categorical}, {name: likes, kind: multi}]",
    "features.event_signals=[{name: cheap, kind: below_share, share: 2.0, of: price}, {name: again, kind: repeat}]",
    "features.hard_match=[{history: topics, candidate: topics}, "
    "{history: item_id, candidate: item_id, window_days: 7}]",
    "histories.window_days=14",
)


@pytest.fixture(scope="module")
def toy(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A published toy day."""
    world = Toy.build(spark_session, tmp_path_factory.mktemp("toy"), overrides=RICH)
    score_daily.main(world.args())
    return world


def published(spark: SparkSession, toy: Toy, target: str = "scores") -> dict[int, dict[int, float]]:
    rows = read_table(spark, toy.config.table(Role.SCORES, target=target)).collect()
    return {row["user_id"]: {pair["item_id"]: pair["score"] for pair in row["ranked"]} for row in rows}


@torch.inference_mode()
def by_hand(toy: Toy) -> dict[int, dict[int, float]]:
    """Score every candidate from the toy's plain rows: no Spark, no shards, no micro-batches."""
    path = resolve_checkpoint(toy.config.folder("checkpoints"), "gesr")
    checkpoint = load_checkpoint(path)
    states = load_item_states(
        resolve_item_states(toy.config.folder("item_states"), checkpoint_id=checkpoint.checkpoint_id, ds=DS)
    )
    now_s = round(request_time(DS).timestamp())
    found = {}
    for _, user, candidates in toy_candidates():
        events = sorted(
            {(int(when.timestamp()), item, value) for who, item, when, _, value, _ in toy_events() if who == user}
        )
        recent = [event for event in events if now_s - 14 * 86_400 <= event[0] < now_s]
        items = sorted(item for item, _, _ in candidates)
        row = pa.RecordBatch.from_pydict(
            {
                "user_age_group": ["ABC"[user % 3]],
                "user_likes": pa.array([[None, user % 4, 2**60 + user % 3][: user % 4]], pa.list_(pa.int64())),
                "history_item_id": pa.array([[item for _, item, _ in recent]], pa.list_(pa.int64())),
                "history_time_s": pa.array([[at_s for at_s, _, _ in recent]], pa.list_(pa.int64())),
                "history_action": pa.array([["buy"] * len(recent)], pa.list_(pa.string())),
                "history_value": pa.array([[value for _, _, value in recent]], pa.list_(pa.float64())),
                "candidate_item_id": [items],
            }
        )
        features = checkpoint.features
        jagged = decode(
            row,
            index=states.index,
            encode_users=features.encode_users,
            actions=features.actions,
            request_time_s=now_s,
        )
        requests = pad(jagged, torch.tensor([0]), history_length=len(recent), candidates=len(items))
        model = checkpoint.build()
        state = model.encode_user(requests.history, states.items.take(requests.history.row_BT), requests.user)  # type: ignore[operator]
        logits = model.score(state, states.items.take(requests.candidate_row_BN))  # type: ignore[operator]
        found[user] = dict(zip(items, logits[0, :, features.tasks.index("bought")].tolist(), strict=True))
    return found


def test_what_is_published_is_what_the_rows_score_by_hand(toy: Toy, spark: SparkSession) -> None:
    scores, expected = published(spark, toy), by_hand(toy)
    assert set(scores) == set(range(USERS))
    for user, pairs in scores.items():
        assert pairs == pytest.approx({item: expected[user][item] for item in pairs}, rel=5e-5, abs=5e-5)
        assert len(pairs) == min(5, len(expected[user]))
        assert min(pairs.values()) >= sorted(expected[user].values(), reverse=True)[len(pairs) - 1] - 5e-5


def test_the_udf_transport_gives_the_same_bits_with_lists(toy: Toy, spark: SparkSession) -> None:
    score_daily.main(toy.args("scoring.transport=pandas_udf", target="scores_udf"))
    assert published(spark, toy, "scores_udf") == published(spark, toy)


def test_another_window_than_the_checkpoints_is_refused(toy: Toy) -> None:
    with pytest.raises(ConfigurationError, match=r"histories\.window_days is null, but checkpoint .* with 14"):
        score_daily.main(toy.args("histories.window_days=null", target="scores_never"))


def test_a_column_of_another_shape_is_refused_by_name(toy: Toy, spark: SparkSession, tmp_path: Path) -> None:
    users = spark.createDataFrame([(1, "A", "x")], "user_id bigint, age_group string, likes string")
    users.write.format("delta").save(str(tmp_path / "users"))
    with pytest.raises(InputError, match=r"'likes' is string, but a feature of kind multi is one of array<string>"):
        score_daily.main(toy.args(f"tables.users.location={tmp_path}/users", target="scores_never"))
    columns = "item_id bigint, product_subclass array<string>, topics array<string>, price double"
    items = spark.createDataFrame([(1, ["x"], ["y"], 1.0)], columns)
    items.write.format("delta").save(str(tmp_path / "items"))
    with pytest.raises(InputError, match=r"column 'product_subclass' is array<string>.*declare it with kind: multi"):
        export_items.main(toy.args(f"tables.items.location={tmp_path}/items", target=None))
