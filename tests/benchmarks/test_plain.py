"""The rivals of `score_stage` score what our scorer scores: else the comparison would say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.made_up import WHOLE_GESR, item_ids, make_requests, make_world, settings_for, write_world
from benchmarks.plain import COLUMNS, USER_INDICES, BestOfFrames, pair_predictor
from gesr_core.runtime.worker import task_scorer

EVENTS, CANDIDATES, USERS = 12, 30, 5


def test_rivals_give_the_scores_of_our_scorer(tmp_path: Path) -> None:
    world = make_world(
        "gesr", *WHOLE_GESR, "models.gesr.width=16", max_history=EVENTS, items=400, device=torch.device("cpu")
    )
    batch = make_requests(world, lengths=np.full(USERS, EVENTS), counts=np.full(USERS, CANDIDATES))
    task = write_world(world, tmp_path, settings=settings_for(world, candidates=CANDIDATES))
    ours = {
        row["user_id"]: {pair["item_id"]: (pair["score"], pair["logit_bought"]) for pair in row["ranked"]}
        for scored in task_scorer(task).score(iter([batch]))
        for row in scored.to_pylist()
    }
    assert {len(ranked) for ranked in ours.values()} == {CANDIDATES}
    indices_BC = world.features.encode_users(batch).categorical_BC
    frame = pa.Table.from_batches([batch]).append_column(USER_INDICES, pa.array(indices_BC.tolist())).to_pandas()
    for row in BestOfFrames(task, 2).of(frame[list(COLUMNS)]).to_dict("records"):
        for item, score, logit in zip(row["item_id"], row["score"], row["logit_bought"], strict=True):
            assert (score, logit) == pytest.approx(ours[row["user_id"]][item], rel=5e-5, abs=5e-5)
        assert list(row["score"]) == sorted(row["score"], reverse=True)
    pairs = frame[list(COLUMNS)].explode("candidate_item_id")
    columns = [np.stack(pairs[name].to_list()) for name in COLUMNS[1:-1]]
    logits = pair_predictor(task)()(*columns, pairs["candidate_item_id"].to_numpy(dtype=np.int64))
    for user, item, (logit, _) in zip(pairs["user_id"], pairs["candidate_item_id"], logits, strict=True):
        assert logit == pytest.approx(ours[user][item][1], rel=5e-5, abs=5e-5)


def test_items_have_ascending_ids() -> None:
    assert item_ids(np.arange(4)).tolist() == [3, 10, 17, 24]
