"""The ways of scoring that `score_stage` compares: our stage, our scorer without Spark, and the rivals."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession, functions as F, types as T

from benchmarks.environments import environment
from benchmarks.made_up import World, cut_requests, make_requests
from benchmarks.plain import COLUMNS, USER_INDICES, BestOfFrames, pair_predictor, result_fields
from gesr_core.config import PROJECT_ROOT
from gesr_core.errors import GesrError
from gesr_core.executors import OnGrantedGpu
from gesr_core.names import Col
from gesr_core.runtime.worker import ScoreShards, task_scorer
from gesr_core.udf import result_fields as stage_fields

RIVALS: Final = ("pairs", "udf", "pandas", "ray")
# Pairs, or requests, that are scored together: the best of them is taken.
PAIRS_TRIED: Final = (8, 32, 128, 512)
REQUESTS_TRIED: Final = (1, 4, 16, 64, 256)
BATCH_PAIRS_TRIED: Final = (1_024, 2_048, 4_096, 8_192, 32_768)
# More pairs at once than this are not tried: they would only take memory.
_MOST_AT_ONCE: Final = 65_536
# No run takes a tenth of this; a stall over loop-back TCP was seen, and must not hold up the rest.
_STALLED_S: Final = 300
_HERE: Final = Path(__file__).parent
_OURS: Final = ("stage", "loop")


@dataclass(frozen=True)
class Input:
    """A Parquet file of request rows of one size, users numbered from 0; and how many they are."""

    path: Path
    users: int
    history_length: int
    candidates: int


@dataclass(frozen=True)
class Way:
    """A way of scoring: the seconds that the first so many users take with a batch size, and the sizes to try."""

    run: Callable[[int, int], float]
    sizes: Sequence[int]


@dataclass(frozen=True)
class Spoken:
    """DataFrames that score the first so many users, one method a way."""

    spark: SparkSession
    task: ScoreShards
    given: Input

    def stage(self, users: int, batch_pairs: int) -> DataFrame:
        """Our stage."""
        rows = self._rows(users).drop(USER_INDICES)
        fields = f"{Col.SHARD} int, {Col.USER_ID} bigint, {stage_fields(rows, tasks=self.task.settings.tasks)}"
        return rows.mapInArrow(OnGrantedGpu(in_batches(self.task, batch_pairs)), fields)

    def pairs(self, users: int, batch: int) -> DataFrame:
        """Each pair a row with its whole history."""
        length = self.given.history_length
        predict = predict_batch_udf(
            pair_predictor(self.task), return_type=T.ArrayType(T.FloatType()), batch_size=batch,
            input_tensor_shapes=[[length], [length], [length], [2], []],
        )  # fmt: skip
        exploded = self._rows(users).select(*COLUMNS[:-1], F.explode(COLUMNS[-1]).alias(Col.ITEM_ID))
        return exploded.select(Col.USER_ID, Col.ITEM_ID, predict(*COLUMNS[1:-1], Col.ITEM_ID).alias("logits"))

    def pandas(self, users: int, batch: int) -> DataFrame:
        """Frames of request rows."""
        fields = result_fields(self.task.settings.tasks)
        return self._rows(users).select(*COLUMNS).mapInPandas(BestOfFrames(self.task, batch), fields)

    def udf(self, users: int, batch: int) -> DataFrame:
        """A column of request rows."""
        best = BestOfFrames(self.task, batch)

        @F.pandas_udf(result_fields(self.task.settings.tasks))  # type: ignore[call-overload]
        def score(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
            yield from best(frames)

        return self._rows(users).select(score(F.struct(*COLUMNS)).alias("best"))

    def _rows(self, users: int) -> DataFrame:
        return self.spark.read.parquet(str(self.given.path)).where(F.col(Col.USER_ID) < users).coalesce(1)


def write_input(world: World, folder: Path, *, history_length: int, candidates: int, users: int) -> Input:
    """Write request rows of users numbered from 0, with the users' feature indices for the rivals.

    Users with more candidates than a request may hold (`scoring.max_candidates_per_request`) are cut as the join does.
    """
    batch = make_requests(world, lengths=np.full(users, history_length), counts=np.full(users, candidates))
    batch = cut_requests(batch, most=world.config.scoring.max_candidates_per_request)
    indices_BC = world.features.encode_users(batch).categorical_BC
    offsets = np.arange(0, indices_BC.numel() + 1, indices_BC.shape[1], dtype=np.int32)
    indices = pa.ListArray.from_arrays(pa.array(offsets), pa.array(indices_BC.flatten().numpy()))
    folder.mkdir(parents=True)
    path = folder / "requests.parquet"
    table = pa.Table.from_batches([batch]).append_column(USER_INDICES, indices)
    # Small row groups, so that a run over few users reads few.
    pq.write_table(table, path, row_group_size=max(64, batch.num_rows // 16))
    return Input(path, users, history_length, candidates)


@dataclass(frozen=True)
class Timed:
    """What one run took, beside one over a single user: what a job costs whatever it does."""

    users: int
    seconds: float
    fixed_s: float

    @property
    def s_per_user(self) -> float:
        """Seconds a user more takes."""
        return (self.seconds - self.fixed_s) / (self.users - 1)


def timed(way: Way, *, users: int, size: int) -> Timed:
    """Run a way over so many users, and over one."""
    # Workers that idled while others were timed were sent away: the first run of all only brings them back.
    way.run(1, size)
    return _timed(way, users=users, size=size)


def _timed(way: Way, *, users: int, size: int) -> Timed:
    return Timed(users, way.run(users, size), way.run(1, size))


def best_size(way: Way, given: Input, *, seconds: float) -> tuple[int, int]:
    """Return the batch size that suits a way best, and how many users then take about so many seconds."""
    # Workers start and load at the first run.
    way.run(1, way.sizes[0])
    some, taken = 2, {}
    for size in way.sizes:
        # What is faster is asked for more, so that no size is judged by noise.
        while (found := _timed(way, users=some, size=size)).seconds - found.fixed_s < 0.2 * seconds:
            if some == given.users:
                break
            some = min(4 * some, given.users)
        taken[size] = found.s_per_user
    best = min(taken, key=taken.__getitem__)
    return best, int(np.clip(np.ceil(seconds / max(taken[best], 1e-9)), 4, given.users))


@contextmanager
def ways_of(spark: SparkSession, task: ScoreShards, given: Input, *, rivals: Sequence[str]) -> Iterator[dict[str, Way]]:
    """Yield `stage`, `loop` (the scorer without Spark) and the rivals, by name."""
    spoken = Spoken(spark, task, given)
    requests = [size for size in REQUESTS_TRIED if size * given.candidates <= _MOST_AT_ONCE]
    sizes = {"stage": BATCH_PAIRS_TRIED, "pairs": PAIRS_TRIED, "udf": requests, "pandas": requests}
    ways = {
        name: Way(_of_job(getattr(spoken, name)), tried) for name, tried in sizes.items() if name in (*_OURS, *rivals)
    }
    ways["loop"] = Way(_loop(task, given), BATCH_PAIRS_TRIED)
    with ExitStack() as running:
        if "ray" in rivals:
            ways["ray"] = Way(running.enter_context(_ray(task, given)), requests)
        yield ways


def in_batches(task: ScoreShards, batch_pairs: int) -> ScoreShards:
    """Return the task with micro-batches of so many pairs."""
    return replace(task, settings=replace(task.settings, batch_pairs=batch_pairs))


def _of_job(made: Callable[[int, int], DataFrame]) -> Callable[[int, int], float]:
    def run(users: int, batch: int) -> float:
        df = made(users, batch)
        started_s = time.perf_counter()
        with _unless_stalled(df.sparkSession.sparkContext.cancelAllJobs):
            df.write.format("noop").mode("overwrite").save()
        return time.perf_counter() - started_s

    return run


@contextmanager
def _unless_stalled(end: Callable[[], object]) -> Iterator[None]:
    """Call `end` when what is done takes far too long."""
    timer = threading.Timer(_STALLED_S, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _loop(task: ScoreShards, given: Input) -> Callable[[int, int], float]:
    def run(users: int, batch_pairs: int) -> float:
        table = pq.read_table(given.path, filters=[(Col.USER_ID, "<", users)]).drop_columns([USER_INDICES])
        [batch] = table.combine_chunks().to_batches()
        scorer = task_scorer(in_batches(task, batch_pairs))
        started_s = time.perf_counter()
        for _ in scorer.score(iter([batch])):
            pass
        return time.perf_counter() - started_s

    return run


def ray_environment() -> Path:
    """Return the Python of Ray's environment, which is built at the first call."""
    return environment(_HERE / "requirements-ray.txt", name="ray", beside_ours=True)


@contextmanager
def _ray(task: ScoreShards, given: Input) -> Iterator[Callable[[int, int], float]]:
    """Yield Ray Data: a process in an environment of its own, asked for runs over its standard input."""
    python = ray_environment()
    pickled = given.path.with_suffix(".pickle")
    pickled.write_bytes(pickle.dumps(task))
    known = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        # Else workers are sent away, with the model that they loaded, while others are timed.
        "RAY_idle_worker_killing_time_threshold_ms": "3600000",
    }
    command = [str(python), "-m", "benchmarks.ray_stage", str(given.path), str(pickled)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **known}, cwd=PROJECT_ROOT
    ) as process:

        def run(users: int, batch: int) -> float:
            with suppress(BrokenPipeError), _unless_stalled(process.kill):
                print(json.dumps({"users": users, "batch": batch}), file=process.stdin, flush=True)
                # Ray has things to say on standard output too.
                for line in cast("IO[str]", process.stdout):
                    if line.startswith('{"seconds"'):
                        return float(json.loads(line)["seconds"])
            raise GesrError(f"{command[2]} ended with {process.wait()}; its last words are above")

        try:
            yield run
        finally:
            with suppress(BrokenPipeError):
                cast("IO[str]", process.stdin).close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
