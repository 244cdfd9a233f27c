"""Whatever stands in the cells of request rows, every candidate is scored to finite numbers or rejected."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from gesr_core.names import Col, user_feature
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.runtime.plan import ScorerSettings
from gesr_core.runtime.scorer import Scorer
from gesr_core.training.checkpoint import load_checkpoint
from tests.toy import ITEMS, item_topics, toy_config, write_toy_checkpoint

NOW_S = 1_710_028_800
MODELS = ("gesr", "two_tower", "tarq")
item_ids = st.integers(1, ITEMS) | st.sampled_from([0, -1, 999, 2**63 - 1, -(2**63)])
times_s = st.integers(NOW_S - 10**7, NOW_S - 1) | st.sampled_from([0, -1, NOW_S, NOW_S + 10**9, 2**62, -(2**62)])
values = st.floats(allow_nan=True, allow_infinity=True) | st.none()
actions = st.sampled_from(["buy", "never seen", "", None, "\x00", "é" * 40])
words = st.sampled_from(["A", "115", "0"]) | st.text(max_size=6)
texts = st.none() | words
events = st.lists(st.tuples(item_ids, times_s, actions, values), max_size=6)
REJECTED = pa.list_(pa.struct([("item_id", pa.int64()), ("reason", pa.string())]))


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Request rows as the join leaves them: of sorted users, distinct sorted candidates; everything else is open."""
    users = sorted(draw(st.sets(st.integers(-(2**63), 2**63 - 1), max_size=5)))
    found = []
    for user in users:
        history, candidates = draw(events), sorted(draw(st.sets(item_ids, max_size=9)))
        lists = draw(st.lists(words, max_size=12))
        found.append(
            {
                Col.SHARD: 0, Col.PART: 0, Col.USER_ID: user, Col.REQUEST: 0,
                user_feature("age_group"): draw(texts), user_feature("pin_code"): draw(texts),
                user_feature("likes"): draw(st.sampled_from([None, lists])),
                Col.HISTORY_ITEM_ID: [e[0] for e in history], Col.HISTORY_TIME_S: [e[1] for e in history],
                Col.HISTORY_ACTION: [e[2] for e in history], Col.HISTORY_VALUE: [e[3] for e in history],
                Col.CANDIDATE_ITEM_ID: candidates, Col.REJECTED: [], Col.CANDIDATES_IN: len(candidates),
            }
        )  # fmt: skip
    return found


def batch_of(found: list[dict[str, Any]]) -> pa.RecordBatch:
    types = {
        Col.SHARD: pa.int32(), Col.PART: pa.int32(), Col.USER_ID: pa.int64(), Col.REQUEST: pa.int32(),
        user_feature("age_group"): pa.string(), user_feature("pin_code"): pa.string(),
        user_feature("likes"): pa.list_(pa.string()), Col.HISTORY_ITEM_ID: pa.list_(pa.int64()),
        Col.HISTORY_TIME_S: pa.list_(pa.int64()), Col.HISTORY_ACTION: pa.list_(pa.string()),
        Col.HISTORY_VALUE: pa.list_(pa.float64()), Col.CANDIDATE_ITEM_ID: pa.list_(pa.int64()),
        Col.REJECTED: REJECTED, Col.CANDIDATES_IN: pa.int64(),
    }  # fmt: skip
    return pa.RecordBatch.from_pydict({name: pa.array([r[name] for r in found], t) for name, t in types.items()})


@pytest.fixture(scope="module", params=MODELS)
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    config = toy_config(tmp_path_factory.mktemp("toy"))
    checkpoint = load_checkpoint(write_toy_checkpoint(config, model=request.param))
    ids = list(range(1, ITEMS + 1))
    odd = [math.nan, math.inf, -math.inf, None, 1e300, -1e300]
    columns: dict[str, Any] = {
        "item_id": ids,
        "product_subclass": [None if item % 6 == 0 else f"class {item % 9}" for item in ids],
        "topics": [item_topics(item) for item in ids],
        "price": pa.array([odd[item % 6] if item % 4 == 0 else float(item) for item in ids], pa.float64()),
    }
    for statistic in config.features.item_statistics:
        columns[statistic.name] = pa.array([odd[item % 6] if item % 5 == 0 else 1.0 for item in ids], pa.float64())
    model: Any = checkpoint.build()
    with torch.inference_mode():
        items = model.encode_items(checkpoint.features.encode_items(pa.table(columns)))
    return Scorer(
        model,
        items=items,
        index=ItemIndex.build(torch.tensor(ids)),
        encode_users=checkpoint.features.encode_users,
        actions=checkpoint.features.actions,
        settings=ScorerSettings(
            request_time_s=NOW_S, tasks=checkpoint.features.tasks,
            score_weights=(1.0, 0.5)[: len(checkpoint.features.tasks)],
            top_k=4, batch_pairs=16, plan_window_requests=3, history_buckets=(2, 8), candidate_buckets=(4, 16),
        ),
        device=torch.device("cpu"),
    )  # fmt: skip


@hypothesis_settings(max_examples=60)
@given(found=rows())
def test_every_candidate_is_scored_to_finite_numbers_or_rejected(scorer: Scorer, found: list[dict[str, Any]]) -> None:
    scored = [row for batch in scorer.score(iter([batch_of(found)])) for row in batch.to_pylist()]
    assert [row[Col.USER_ID] for row in scored] == [row[Col.USER_ID] for row in found]
    for row, asked in zip(scored, found, strict=True):
        known = [item for item in asked[Col.CANDIDATE_ITEM_ID] if 1 <= item <= ITEMS]
        assert row[Col.CANDIDATES_IN] == row[Col.CANDIDATES_SCORED] + len(row[Col.REJECTED])
        assert row[Col.CANDIDATES_SCORED] == len(known)
        assert row[Col.HISTORY_EVENTS] == len(asked[Col.HISTORY_ITEM_ID])
        assert {entry["reason"] for entry in row[Col.REJECTED]} <= {"unknown_item"}
        assert len(row[Col.RANKED]) == min(4, len(known))
        for pair in row[Col.RANKED]:
            numbers = [value for name, value in pair.items() if name == Col.SCORE or name.startswith("logit_")]
            assert all(math.isfinite(number) for number in numbers), pair
