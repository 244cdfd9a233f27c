"""The rivals of `score_stage`: what a person writes around the same model, with pandas, or pair by pair.

They are given all that helps: histories of one length, so that rows stack without padding; user features as indices
already; the model's cached form (but for pairs, which have no requests to cache for); the best K as parallel lists;
processes that keep the memory that they free.
Each keeps what it loaded for its worker process. Runs in Spark's and Ray's workers; no JVM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gesr_core.model.build import Model
from gesr_core.model.inputs import History, UserFeatures
from gesr_core.runtime.allocator import keep_freed_memory
from gesr_core.runtime.worker import Loaded, ScoreShards, load

USER_INDICES: Final = "user_indices"
COLUMNS: Final = ("user_id", "history_item_id", "history_time_s", "history_value", USER_INDICES, "candidate_item_id")
_CPU: Final = torch.device("cpu")


def result_fields(tasks: tuple[str, ...]) -> str:
    """Return what `BestOfFrames` gives, as Spark DDL."""
    logits = ", ".join(f"logit_{task} array<float>" for task in tasks)
    return f"user_id bigint, item_id array<bigint>, score array<float>, {logits}"


@dataclass(frozen=True)
class BestOfFrames:
    """Maps pandas frames of request rows to frames of each user's best K, `requests` of them at a time."""

    task: ScoreShards
    requests: int

    def __call__(self, frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """Map the frames of a partition (`mapInPandas`)."""
        for frame in frames:
            yield self.of(frame)

    @torch.inference_mode()
    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Map one frame."""
        loaded = _loaded(self.task)
        parts = [
            self._best(loaded, frame.iloc[start : start + self.requests])
            for start in range(0, len(frame), self.requests)
        ]
        return pd.concat(parts, ignore_index=True)

    def _best(self, loaded: Loaded, frame: pd.DataFrame) -> pd.DataFrame:
        settings = self.task.settings
        ids_BN = np.stack(frame["candidate_item_id"].to_list())
        logits_BNS = _requests_logits(
            loaded, self.task, {name: np.stack(frame[name].to_list()) for name in COLUMNS[1:]}
        )
        score_BN = logits_BNS @ torch.tensor(settings.score_weights)
        score_BK, place_BK = score_BN.topk(min(settings.top_k, score_BN.shape[1]), dim=1)
        best = {
            "user_id": frame["user_id"].to_numpy(),
            "item_id": list(np.take_along_axis(ids_BN, place_BK.numpy(), 1)),
        }
        best["score"] = list(score_BK.numpy())
        for number, name in enumerate(settings.tasks):
            best[f"logit_{name}"] = list(logits_BNS[..., number].gather(1, place_BK).numpy())
        return pd.DataFrame(best)


def pair_predictor(task: ScoreShards) -> Callable[[], Callable[..., np.ndarray]]:
    """Return what `predict_batch_udf` takes: each row is a pair with its whole history, and gives the pair's logits."""

    def make() -> Callable[..., np.ndarray]:
        loaded = _loaded(task)

        @torch.inference_mode()
        def predict(
            items: np.ndarray, times_s: np.ndarray, values: np.ndarray, user: np.ndarray, candidate: np.ndarray
        ) -> np.ndarray:
            columns = dict(zip(COLUMNS[1:], (items, times_s, values, user, candidate.reshape(-1, 1)), strict=True))
            return _requests_logits(loaded, task, columns)[:, 0].numpy()

        return predict

    return make


def _requests_logits(loaded: Loaded, task: ScoreShards, columns: Mapping[str, np.ndarray]) -> Tensor:
    """Return logits_BNS of stacked columns: histories [B, T], candidates [B, N]."""
    row_BT = _rows(loaded, columns["history_item_id"])
    age_s_BT = torch.from_numpy((task.settings.request_time_s - columns["history_time_s"]).astype(np.float32))
    value_BT = torch.from_numpy(columns["history_value"].astype(np.float32))
    length_B = torch.full((len(row_BT),), row_BT.shape[1])
    # There is one action, the first of the vocabulary.
    history = History(row_BT, age_s_BT, torch.ones_like(row_BT), value_BT, length_B)
    indices_BC = torch.from_numpy(columns[USER_INDICES].astype(np.int64))
    user = UserFeatures(indices_BC, torch.zeros(len(row_BT), 0))
    model = cast(Model, loaded.model)
    state = model.encode_user(history, loaded.items.take(row_BT), user)
    return model.score(state, loaded.items.take(_rows(loaded, columns["candidate_item_id"])))


def _rows(loaded: Loaded, ids: np.ndarray) -> Tensor:
    """Return the rows of item ids, all of which are in the table."""
    keys = loaded.index.key_R.numpy()
    return torch.from_numpy(np.searchsorted(keys, ids))


@cache
def _loaded(task: ScoreShards) -> Any:
    # As our own workers do; a worker that is used again would do it for all anyway.
    keep_freed_memory()
    torch.set_num_threads(task.threads)
    return load(task, device=_CPU)
