"""`python -m benchmarks.scaling`: score_daily as a whole, from a million pairs to thirty: time = fixed + slope x pairs.

Made-up users with 64 events and 500 candidates, whole gesr with random weights, all cores of this machine. Progress to
stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pyspark.sql import Column, SparkSession, functions as F

from benchmarks.counted import gemm_peak
from benchmarks.line import RESULTS, emit, goal, goal_in_words, machine, versions
from benchmarks.made_up import AGES, DS, ID_START, ID_STEP, PLACES, WHOLE_GESR, make_world, settings_for, write_world
from benchmarks.sessions import all_cores
from gesr_core.config import PROJECT_ROOT, Config, load_config
from gesr_core.dates import request_time
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.ledger import read_ledger
from gesr_core.sink.tables import append, create_table
from gesr_core.sink.work import Work
from jobs import score_daily, update_histories

log = logging.getLogger("benchmarks.scaling")

_PAIRS: Final = (1_000_000, 3_000_000, 10_000_000, 30_000_000)
_EVENTS, _CANDIDATES, _ITEMS = 64, 500, 100_000
_FLAT: Final = 1.1
_DAY_S: Final = 86_400
# From here on each shard fills a window of the scorer (1,024 requests, 16 shards), which bounds what a worker holds but
# for the Arrow batch that windows are cut from (10,000 rows).
_WHOLE_WINDOWS: Final = 10_000_000
_LARGE_REPEATS: Final = 3


def main(argv: Sequence[str]) -> None:
    """Score days of every size, and report."""
    args = _parse(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, all_cores("scaling", Path(folder)) as spark:
        world = make_world("gesr", *WHOLE_GESR, max_history=_EVENTS, items=_ITEMS, device=torch.device("cpu"))
        write_world(world, Path(folder), settings=settings_for(world, candidates=_CANDIDATES))
        # The JVM compiles and workers start: not what a size costs.
        first = _measure(spark, Path(folder), pairs=min(args.pairs), repeats=1)
        log.info("the first run of all: %.1f s", first["median_s"])
        for pairs in sorted(set(args.pairs)):
            # A large size takes minutes, beside which noise is small.
            repeats = args.repeats if pairs < _WHOLE_WINDOWS else min(_LARGE_REPEATS, args.repeats)
            peak = gemm_peak(torch.float32, device=torch.device("cpu"))
            rows.append({**_measure(spark, Path(folder), pairs=pairs, repeats=repeats), "gemm_peak_before": peak})
            # Half an hour of measuring is not lost with what comes after it.
            log.info("%s", json.dumps(rows[-1]))
            log.info(
                "%s pairs: %.1f s, %.0f pairs/s, at most %d MB a worker", f"{pairs:,}", rows[-1]["median_s"],
                pairs / rows[-1]["median_s"], rows[-1]["peak_bytes"] / 1e6,
            )  # fmt: skip
    pairs_R, median_R = np.array([r["pairs"] for r in rows]), np.array([r["median_s"] for r in rows])
    slope_s, fixed_s = map(float, np.polyfit(pairs_R, median_R, 1))
    log.info("fixed %.1f s, slope %.3f us a pair", fixed_s, 1e6 * slope_s)
    # Below the first size the fixed part is most of the time, and what is left of it is noise.
    beside = [abs(row["median_s"] - fixed_s - slope_s * row["pairs"]) / (slope_s * row["pairs"]) for row in rows[1:]]
    whole = [row for row in rows if row["pairs"] >= _WHOLE_WINDOWS]
    between_us = [
        1e6 * (late["median_s"] - early["median_s"]) / (late["pairs"] - early["pairs"])
        for early, late in pairwise(rows)
    ]
    slopes_us = between_us[1:]
    goals = [
        goal(
            "largest over smallest slope between sizes, without the smallest size", goal=_FLAT, better="lower",
            value=max(slopes_us) / min(slopes_us) if len(slopes_us) > 1 else None,
        ),
        goal(
            "how far a size lies beside the line, as a share of slope x pairs, worst but the smallest",
            goal=_FLAT - 1, better="lower", value=max(beside, default=None),
        ),
        goal(
            f"a worker's peak memory at the largest size over that at the first of {_WHOLE_WINDOWS:,} pairs on",
            goal=_FLAT, better="lower",
            value=whole[-1]["peak_bytes"] / whole[0]["peak_bytes"] if len(whole) > 1 else None,
        ),
    ]  # fmt: skip
    for found in goals:
        print(goal_in_words(found), file=sys.stderr)
    line = {
        "benchmark": "scaling",
        "machine": machine(),
        "versions": versions(("torch", "numpy", "pyarrow", "pyspark", "delta-spark")),
        "settings": {
            "model": "gesr", "overrides": list(WHOLE_GESR), "events": _EVENTS, "candidates": _CANDIDATES,
            "items": _ITEMS, "master": "local[*]", "threads": 1, "precision": "fp32", "repeats": args.repeats,
            "repeats_of_large_sizes": min(_LARGE_REPEATS, args.repeats), "large_from_pairs": _WHOLE_WINDOWS,
        },
        "rows": rows,
        "fixed_s": fixed_s,
        "us_per_pair": 1e6 * slope_s,
        "us_per_pair_between_sizes": between_us,
        # Of a session that has just begun: the JVM compiles, workers start and load.
        "first_run_s": first["median_s"],
        # One implementation, no rival.
        "max_score_difference": None,
        "goals": goals,
    }  # fmt: skip
    emit(line, device="cpu", save=args.save)


def _measure(spark: SparkSession, folder: Path, *, pairs: int, repeats: int) -> dict[str, Any]:
    """Score a day of so many pairs, each time to another target."""
    # A name of its own each time: Delta keeps what it knows of a path.
    root = Path(tempfile.mkdtemp(dir=folder))
    storage = ", ".join(f"{name}: {folder}/{name}" for name in ("checkpoints", "item_states", "training_sets"))
    overrides = [f"tables.root={root}", f"storage={{{storage}}}", f"scoring.history_buckets=[8, 16, 32, {_EVENTS}]"]
    config = load_config("local", overrides=overrides)
    _write_tables(spark, config, users=pairs // _CANDIDATES)
    options = ["--ds", DS, *(word for override in overrides for word in ("--set", override))]
    update_histories.main(options)
    seconds, works = [], []
    for repeat in range(repeats):
        target = f"scores_{repeat}"
        started_s = time.perf_counter()
        score_daily.main([*options, "--target", target])
        seconds.append(time.perf_counter() - started_s)
        ledger = read_ledger(spark, config.table(Role.LEDGER), job="score_daily", ds=DS, target=target)
        [published] = [row for row in ledger if row.kind == "run_published"]
        works.append(Work.from_json(published.details["work"]))
    if {work.pairs for work in works} != {pairs // _CANDIDATES * _CANDIDATES}:
        raise AssertionError(f"scored {works[0].pairs} pairs")
    shutil.rmtree(root)
    return {
        "pairs": pairs, "seconds": [round(s, 2) for s in seconds], "median_s": statistics.median(seconds),
        "peak_bytes": max(work.peak_bytes for work in works), "loads": [work.loads for work in works],
        "work": works[seconds.index(statistics.median_low(seconds))].to_json(),
    }  # fmt: skip


def _write_tables(spark: SparkSession, config: Config, *, users: int) -> None:
    now_s = round(request_time(DS).timestamp())
    user, event = F.col("id"), F.col("event")

    def item(number: Column) -> Column:
        return F.lit(ID_START) + F.lit(ID_STEP) * F.pmod(number, F.lit(_ITEMS))

    # Within 120 days, all before the request time.
    time_s = F.lit(now_s - 1) - F.pmod(F.xxhash64(user, event), F.lit(120 * _DAY_S))
    happened = F.timestamp_seconds(time_s)
    events = {
        Col.USER_ID: user, Col.ITEM_ID: item(F.xxhash64(user, event, F.lit(1))), Col.EVENT_TS: happened,
        Col.ACTION: F.lit("buy"), Col.VALUE: F.pmod(time_s, F.lit(97)).cast("double"),
        Col.DS: F.date_format(happened, "yyyy-MM-dd"),
    }  # fmt: skip
    each = spark.range(users).withColumn("event", F.explode(F.sequence(F.lit(1), F.lit(_EVENTS))))
    _append(spark, config, Role.EVENTS, each, events)
    places = F.sequence(F.lit(0), F.lit(_CANDIDATES - 1))
    # A step that has no divisor in common with the number of items, so that no item comes twice.
    retrieved = F.transform(
        places,
        lambda place: F.struct(
            item(F.xxhash64(user) % _ITEMS + 7_919 * place).alias(Col.ITEM_ID),
            F.lit("made_up").alias(Col.SOURCE),
            (-place).cast("double").alias(Col.RETRIEVAL_SCORE),
        ),
    )
    of_ds = {Col.DS: F.lit(DS), Col.USER_ID: user, Col.CANDIDATES: retrieved}
    _append(spark, config, Role.CANDIDATES, spark.range(users), of_ds)
    of_user = {"age": F.pmod(F.xxhash64(user), F.lit(AGES)), "place": F.pmod(F.xxhash64(user, user), F.lit(PLACES))}
    about = spark.range(users).select(user.alias(Col.USER_ID), *(c.cast("string").alias(n) for n, c in of_user.items()))
    about.write.format("delta").save(config.table(Role.USERS).location)


def _append(spark: SparkSession, config: Config, role: Role, df: Any, columns: dict[str, Column]) -> None:
    create_table(spark, config.table(role), written_columns(role))
    append(df.select(*(column.alias(name) for name, column in columns.items())), config.table(role))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=_PAIRS, help="sizes of a day")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; medians count (default: 5)")
    parser.add_argument("--save", action="store_true", help=f"keep the line in {RESULTS.relative_to(PROJECT_ROOT)}")
    args = parser.parse_args(argv)
    if len(set(args.pairs)) < 2:
        parser.error("--pairs: a line needs two sizes at least")
    return args


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1:])
