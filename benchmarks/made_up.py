"""A catalogue, a model with random weights and requests of given sizes: for benchmarks of speed, whatever the values.

The model is that of the configuration, its features those of a shop: a category, eight statistics, five pairs of hard
matching (three of them narrowed to a window), two user categories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from gesr_core.config import Config, load_config
from gesr_core.model.build import Model, build_model
from gesr_core.model.inputs import ItemFeatures, ItemState
from gesr_core.model.tarq import Tarq
from gesr_core.names import Col, user_feature
from gesr_core.ops.matching import MatchPair
from gesr_core.runtime.device import CPU_BATCH_BYTES, CPU_BATCH_PAIRS
from gesr_core.runtime.item_index import ItemIndex
from gesr_core.runtime.item_states import Catalogue, export_item_states, load_item_states
from gesr_core.runtime.plan import ScorerSettings
from gesr_core.runtime.worker import ScoreShards
from gesr_core.training.checkpoint import load_checkpoint, save_checkpoint
from gesr_core.training.features import FeatureSpace, Normaliser, Vocabulary

REQUEST_TIME_S: Final = 1_000_000_000
DS: Final = "2001-09-09"
ID_START, ID_STEP = 3, 7
_STATISTICS: Final = tuple(f"statistic_{number}" for number in range(8))
_DAY_S: Final = 86_400
_SUBCLASSES, AGES, PLACES = 2_000, 10, 8
WHOLE_GESR: Final = ("models.gesr.cross_width=32",)


@dataclass(frozen=True)
class World:
    """A catalogue of items with the states that a model gives them; `counted_bytes` as a worker keeps them."""

    name: str
    config: Config
    features: FeatureSpace
    model: torch.nn.Module
    items: ItemState
    index: ItemIndex
    item_ids: np.ndarray
    encoded: ItemFeatures
    counted_bytes: dict[tuple[int, int], int] = field(default_factory=dict)


def make_world(
    model_name: str, *overrides: str, max_history: int, items: int = 100_000, device: torch.device, seed: int = 0
) -> World:
    """Return a world; overrides are of the configuration, `max_history` events bound a history."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = load_config("local", overrides=list(overrides))
    ids = item_ids(np.arange(items))
    features = FeatureSpace(
        item_ids=tuple(ids[:: max(1, items // 14_000)].tolist()),
        item_categories=(Vocabulary("subclass", _numbers(_SUBCLASSES)),),
        item_numerics=tuple(Normaliser(name, "log1p", 2.0, 1.0) for name in _STATISTICS),
        user_categories=(Vocabulary("age", _numbers(AGES)), Vocabulary("place", _numbers(PLACES))),
        user_numerics=(),
        actions=("buy",),
        match_fields=("item_id", "subclass"),
        match_pairs=(
            MatchPair(0, 0), MatchPair(1, 1), MatchPair(0, 0, 7 * _DAY_S), MatchPair(0, 0, 28 * _DAY_S),
            MatchPair(1, 1, 28 * _DAY_S),
        ),
        max_history=max_history,
        tasks=("bought", "bought_high_spend"),
        task_logits=(-4.0, -5.0),
    )  # fmt: skip
    columns: dict[str, Any] = {
        Col.ITEM_ID: ids,
        "subclass": pa.array(rng.integers(0, _SUBCLASSES, items)).cast(pa.string()),
        **{name: rng.exponential(5.0, items) for name in _STATISTICS},
    }
    model = build_model(config.models[model_name], features.sizes).eval()
    for parameter in model.parameters():
        # Zeros, with which heads start, would be scored as fast; but every pair would have the same score.
        torch.nn.init.normal_(parameter, std=0.1)
    if isinstance(model, Tarq):
        # As if it had been trained: without this its codes are not asked.
        model.codebooks.ready.fill_(True)
    encoded = features.encode_items(pa.table(columns))
    with torch.inference_mode():
        states = cast(Model, model).encode_items(encoded)
    # As an export is read.
    on_device = states.map(lambda tensor: tensor.contiguous().to(device))
    index = ItemIndex.build(torch.from_numpy(ids)).to(device)
    return World(model_name, config, features, model.to(device), on_device, index, ids, encoded)


def item_ids(numbers: np.ndarray) -> np.ndarray:
    """Return the ids of items by their numbers: ascending, with gaps."""
    return ID_START + ID_STEP * numbers.astype(np.int64)


def write_world(world: World, folder: Path, *, settings: ScorerSettings) -> ScoreShards:
    """Save a world of a CPU as checkpoint and item states, as executors read them, and return the task that scores."""
    path = save_checkpoint(
        folder / "checkpoints",
        model_name=world.name,
        model_config=world.config.models[world.name],
        weights=world.model.state_dict(),
        features=world.features,
        facts={},
    )
    checkpoint = load_checkpoint(path)
    exported = export_item_states(
        folder / "item_states",
        checkpoint_id=checkpoint.checkpoint_id,
        ds=DS,
        catalogue=Catalogue(world.index.key_R, None, world.encoded),
        encode=cast(Model, world.model).encode_items,
    )
    return ScoreShards(
        checkpoint=str(path),
        checkpoint_id=checkpoint.checkpoint_id,
        item_states=str(exported.path),
        items_version=load_item_states(exported.path, verify=False).items_version,
        settings=settings,
        device="cpu",
        threads=1,
    )


def make_requests(world: World, *, lengths: np.ndarray, counts: np.ndarray, seed: int = 0) -> pa.RecordBatch:
    """Return one request per user with so many events and candidates; three in ten candidates are in the history."""
    rng = np.random.default_rng(seed)
    users, events, pairs = len(lengths), int(lengths.sum()), int(counts.sum())
    history = rng.choice(world.item_ids, events)
    candidates = np.empty(pairs, dtype=np.int64)
    start_E, start_P = np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([[0], np.cumsum(counts)])
    for user in range(users):
        own = history[start_E[user] : start_E[user + 1]]
        known = np.unique(own)[: int(0.3 * counts[user])]
        drawn = rng.choice(world.item_ids, int(counts[user]) + len(known), replace=False)
        others = drawn[~np.isin(drawn, known)][: int(counts[user]) - len(known)]
        candidates[start_P[user] : start_P[user + 1]] = np.sort(np.concatenate([known, others]))
    ages_s = rng.integers(1, 120 * _DAY_S, events)
    # Oldest first, user by user.
    times_s = REQUEST_TIME_S - ages_s[np.lexsort((-ages_s, np.repeat(np.arange(users), lengths)))]
    rejected = pa.array([[]] * users, pa.list_(pa.struct([("item_id", pa.int64()), ("reason", pa.string())])))
    return pa.RecordBatch.from_pydict(
        {
            Col.SHARD: pa.array(np.zeros(users, dtype=np.int32)),
            Col.PART: pa.array(np.zeros(users, dtype=np.int32)),
            Col.USER_ID: pa.array(np.arange(users)),
            Col.REQUEST: pa.array(np.zeros(users, dtype=np.int32)),
            Col.HISTORY_ITEM_ID: _lists(history, start_E),
            Col.HISTORY_TIME_S: _lists(times_s, start_E),
            Col.HISTORY_ACTION: _lists(pa.repeat("buy", events), start_E),
            Col.HISTORY_VALUE: _lists(rng.exponential(50.0, events), start_E),
            Col.CANDIDATE_ITEM_ID: _lists(candidates, start_P),
            Col.REJECTED: rejected,
            Col.CANDIDATES_IN: pa.array(counts.astype(np.int64)),
            user_feature("age"): pa.array(rng.integers(0, AGES, users)).cast(pa.string()),
            user_feature("place"): pa.array(rng.integers(0, PLACES, users)).cast(pa.string()),
        }
    )


def cut_requests(batch: pa.RecordBatch, *, most: int) -> pa.RecordBatch:
    """Cut users with more than `most` candidates into several requests, as the join does."""
    counts = pc.list_value_length(batch.column(Col.CANDIDATE_ITEM_ID)).to_numpy()
    requests_U = -(-counts // most)
    user_B = np.repeat(np.arange(batch.num_rows), requests_U)
    number_B = np.arange(len(user_B)) - np.repeat(np.cumsum(requests_U) - requests_U, requests_U)
    size_B = np.minimum(most, counts[user_B] - most * number_B)
    cut = batch.take(pa.array(user_B))
    columns = {name: cut.column(name) for name in cut.schema.names}
    values = batch.column(Col.CANDIDATE_ITEM_ID).flatten().to_numpy()
    columns[Col.CANDIDATE_ITEM_ID] = _lists(values, np.concatenate([[0], np.cumsum(size_B)]))
    columns[Col.REQUEST] = pa.array(number_B.astype(np.int32))
    columns[Col.CANDIDATES_IN] = pa.array(np.where(number_B == 0, counts[user_B], 0).astype(np.int64))
    return pa.RecordBatch.from_pydict(columns)


def settings_for(world: World, *, candidates: int, batch_pairs: int = CPU_BATCH_PAIRS) -> ScorerSettings:
    """Return settings, as a CPU's are chosen, whose buckets fit requests of that many candidates exactly."""
    return ScorerSettings(
        request_time_s=REQUEST_TIME_S,
        tasks=world.features.tasks,
        score_weights=(1.0, 0.3),
        top_k=100,
        batch_pairs=batch_pairs,
        batch_bytes=CPU_BATCH_BYTES,
        plan_window_requests=1_024,
        history_buckets=(world.features.max_history,),
        candidate_buckets=(candidates,),
    )


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(sorted(map(str, range(count))))


def _lists(values: np.ndarray | pa.Array, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
