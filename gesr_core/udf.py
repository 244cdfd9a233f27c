"""`score_udf`: the scorer of score_daily behind an iterator pandas UDF, for ad-hoc DataFrames and SQL, and for
platforms that bar `mapInArrow`. The same scorer, so the same scores bit for bit. Built on the driver, runs in workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame, functions as F, types as T
from pyspark.sql.pandas.types import to_arrow_schema

from gesr_core.config import Config, ScoringConfig
from gesr_core.dates import request_time
from gesr_core.errors import ConfigurationError
from gesr_core.executors import granted_gpu, probe_worker
from gesr_core.names import Col
from gesr_core.runtime.device import Sizes, WorkerDevice, fitting_sizes
from gesr_core.runtime.forms import EXACT, Form, forms_of
from gesr_core.runtime.item_states import load_item_states, resolve_item_states, states_bytes
from gesr_core.runtime.plan import ScorerSettings, boundaries
from gesr_core.runtime.worker import ScoreShards, task_scorer
from gesr_core.schema import STATS_TYPE, ranked_type, rejected_type
from gesr_core.training.checkpoint import Checkpoint, load_checkpoint
from gesr_core.training.registry import resolve_checkpoint

_COUNTS = (Col.CANDIDATES_IN, Col.CANDIDATES_SCORED, Col.HISTORY_EVENTS)
_RESULT = (Col.RANKED, Col.REJECTED, *_COUNTS, Col.STATS)
_NESTED = (Col.RANKED, Col.REJECTED, Col.STATS)


def choose_sizes(scoring: ScoringConfig, worker: WorkerDevice, *, item_states: Path) -> Sizes:
    """Return how much a worker takes on at once: as configured, and where it says auto what fits its device."""
    fitting = fitting_sizes(worker, workers=scoring.workers_per_gpu, item_table_bytes=states_bytes(item_states))
    configured = {name: getattr(scoring, name) for name in vars(fitting)}
    return replace(fitting, **{name: value for name, value in configured.items() if value != "auto"})


def scoring_task(
    config: Config, *, ds: str, checkpoint: Checkpoint, item_states: Path, sizes: Sizes, form: Form = EXACT
) -> ScoreShards:
    """Put together what workers need to score a `ds`; checks the files once, on the driver.

    Raises:
        InputError: the item states are missing or altered.
        ConfigurationError: the tasks or the window of histories that are configured are not the checkpoint's.
    """
    states = load_item_states(item_states)
    _require_window(config, checkpoint)
    scoring = config.scoring
    return ScoreShards(
        checkpoint=str(checkpoint.path),
        checkpoint_id=checkpoint.checkpoint_id,
        item_states=str(item_states),
        items_version=states.items_version,
        settings=ScorerSettings(
            request_time_s=round(request_time(ds).timestamp()),
            tasks=checkpoint.features.tasks,
            score_weights=config.labels.score_weights(checkpoint.features.tasks),
            top_k=scoring.top_k,
            batch_pairs=sizes.batch_pairs,
            plan_window_requests=scoring.plan_window_requests,
            history_buckets=tuple(scoring.history_buckets),
            candidate_buckets=tuple(scoring.candidate_buckets),
            batch_bytes=sizes.batch_bytes,
            precision=form.precision,
            compiled=form.compiled,
        ),
        device=scoring.device,
        threads=scoring.threads_per_worker,
        item_table_bytes=sizes.item_table_bytes,
        workers_per_gpu=scoring.workers_per_gpu,
    )


def _require_window(config: Config, checkpoint: Checkpoint) -> None:
    configured, trained = config.histories.window_days, checkpoint.features.history_window_days
    if configured != trained:
        raise ConfigurationError(
            f"histories.window_days is {configured or 'null'}, but checkpoint {checkpoint.checkpoint_id} was trained "
            f"with {trained or 'null'}: set it back, or train again"
        )


def result_fields(requests: DataFrame, *, tasks: tuple[str, ...]) -> str:
    """Return the fields of a result as Spark DDL, for the item id type of these request rows."""
    item = requests.schema[Col.CANDIDATE_ITEM_ID].dataType.simpleString().removeprefix("array<").removesuffix(">")
    types = (ranked_type(item, tasks=tasks), rejected_type(item), *["bigint"] * len(_COUNTS), STATS_TYPE)
    return ", ".join(f"{name} {type_}" for name, type_ in zip(_RESULT, types, strict=True))


def score_udf(
    requests: DataFrame, *, config: Config, ds: str, checkpoint: str | None = None
) -> Callable[[Column], Column]:
    """Return a UDF from a struct of request columns to a struct of (ranked, rejected, counts, stats).

    Args:
        requests: request rows (`join.requests.build_requests`), for their schema alone.
        config: the resolved configuration.
        ds: the day whose item states and request time to use.
        checkpoint: a model's name, `<model>/<id>`, a folder or `models:/NAME@ALIAS`; default: the newest of
            `training.model`.

    Rows of one user must stand side by side (sorted by shard, part, user_id, request) to be merged; the result stands
    at the user's first row, and `candidates_in` is null at the others.

    Raises:
        InputError: there is no such checkpoint, or it has no item states for `ds`.
        ConfigurationError: the form is to be chosen, for which there are no requests here.
    """
    loaded = load_checkpoint(resolve_checkpoint(config, checkpoint))
    states = resolve_item_states(config.folder("item_states"), checkpoint_id=loaded.checkpoint_id, ds=ds)
    scoring = config.scoring
    worker = probe_worker(requests.sparkSession, wanted=scoring.device)
    sizes = choose_sizes(scoring, worker, item_states=states)
    forms = forms_of(scoring.precision, scoring.compile)
    if len(forms) > 1:
        raise ConfigurationError(
            "scoring.precision and scoring.compile: auto is decided by score_daily on requests of a ds; name one here"
        )
    task = scoring_task(config, ds=ds, checkpoint=loaded, item_states=states, sizes=sizes, form=forms[0])
    return udf_of(task, requests)


def udf_of(task: ScoreShards, requests: DataFrame) -> Callable[[Column], Column]:
    """Return the UDF of a scoring task for request rows of this schema."""
    # pandas has no null among 64-bit integers: it turns them all into doubles, which lose what is beyond 2^53. The ids
    # and features of users may be null, and serve as texts just as well.
    texts = {f.name for f in requests.schema.fields if f.name.startswith("user_") and f.dataType == T.LongType()}
    types = {f.name: T.StringType() if f.name in texts else f.dataType for f in requests.schema.fields}
    schema = to_arrow_schema(T.StructType([T.StructField(name, type_) for name, type_ in types.items()]))
    fields = result_fields(requests, tasks=task.settings.tasks)

    @F.pandas_udf(fields)  # type: ignore[call-overload]
    def score(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        yield from _score_frames(frames, task=task, schema=schema)

    # A deterministic UDF would be run again below a filter on its result, on the rows that the filter left: those
    # alone, so that a user's later requests would be lost.
    udf = cast("Callable[[Column], Column]", score.asNondeterministic())
    return lambda rows: udf(F.struct(*(rows[name].cast(type_).alias(name) for name, type_ in types.items())))


def score_with_udf(requests: DataFrame, task: ScoreShards) -> DataFrame:
    """Score sorted request rows through the UDF into what `mapInArrow` gives: shard, user_id, the result's fields."""
    result = udf_of(task, requests)(F.struct(*requests.columns)).alias("_result")
    scored = requests.select(Col.SHARD, Col.USER_ID, result)
    whole = scored.where(F.col(f"_result.{Col.CANDIDATES_IN}").isNotNull())
    return whole.select(Col.SHARD, Col.USER_ID, *(f"_result.{name}" for name in _RESULT))


def _score_frames(frames: Iterator[pd.DataFrame], *, task: ScoreShards, schema: pa.Schema) -> Iterator[pd.DataFrame]:
    """Feed the scorer; a UDF gives as many rows as it got, so a user's result stands at the first of its requests."""
    batches = (pa.RecordBatch.from_pandas(frame, schema=schema, preserve_index=False) for frame in frames)
    for window, scored in task_scorer(task, gpu=granted_gpu()).score_windows(batches):
        first = np.concatenate([[0], boundaries(window.column(Col.USER_ID))]).astype(np.int64)
        results = scored.select(list(_RESULT)).to_pandas().set_index(first)
        spread = results.reindex(range(window.num_rows)).astype(dict.fromkeys(_COUNTS, "Int64"))
        # Spark takes None for a null array or struct, but not the NaN that reindex leaves.
        nested = spread[list(_NESTED)]
        spread[list(_NESTED)] = nested.where(nested.notna(), None)
        yield spread
