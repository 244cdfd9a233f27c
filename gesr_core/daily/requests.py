"""The request rows of a `ds`, from what a run pinned; and a sample of them. Driver only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.config import ScoringConfig
from gesr_core.io.daily import InputTable
from gesr_core.join.requests import build_requests, users_at
from gesr_core.join.shards import shard_of
from gesr_core.names import Col, Role
from gesr_core.training.checkpoint import Checkpoint

# Enough for some hundred thousand pairs, which a CPU's core scores in seconds.
SAMPLED_USERS: Final = 200


def user_features(checkpoint: Checkpoint) -> list[str]:
    """Return the columns of `users` that a checkpoint reads."""
    space = checkpoint.features
    return [
        *(vocabulary.name for vocabulary in space.user_categories),
        *(number.name for number in space.user_numerics),
    ]


def requests_of_shards(
    inputs: Mapping[Role, InputTable],
    checkpoint: Checkpoint,
    scoring: ScoringConfig,
    *,
    ds: str,
    shards: Sequence[int],
    parts: Mapping[int, int],
) -> DataFrame:
    """Return the request rows of some shards, in no order."""
    of_shards = shard_of(F.col(Col.USER_ID), shards=scoring.shards).isin(list(shards))
    return _requests(inputs, checkpoint, scoring, ds=ds, where=of_shards, shards=scoring.shards, parts=parts)


def sampled_requests(
    inputs: Mapping[Role, InputTable], checkpoint: Checkpoint, scoring: ScoringConfig, *, ds: str, users: int
) -> DataFrame:
    """Return the request rows of about `SAMPLED_USERS` of `users` users, sorted, as one shard in one partition."""
    every = max(1, users // SAMPLED_USERS)
    sampled = F.pmod(F.xxhash64(F.col(Col.USER_ID), F.lit(2)), F.lit(every)) == 0
    rows = _requests(inputs, checkpoint, scoring, ds=ds, where=sampled, shards=1, parts={})
    return rows.repartition(1).sortWithinPartitions(Col.USER_ID, Col.REQUEST)


def _requests(
    inputs: Mapping[Role, InputTable],
    checkpoint: Checkpoint,
    scoring: ScoringConfig,
    *,
    ds: str,
    where: Column,
    shards: int,
    parts: Mapping[int, int],
) -> DataFrame:
    features = user_features(checkpoint)
    return build_requests(
        inputs[Role.CANDIDATES].df.where(where),
        inputs[Role.HISTORIES].df.where(where),
        users_at(inputs[Role.USERS].df, ds=ds, features=features),
        shards=shards,
        ds=ds,
        history_window_days=checkpoint.features.history_window_days,
        max_candidates_per_request=scoring.max_candidates_per_request,
        user_features=features,
        parts=parts,
    )
