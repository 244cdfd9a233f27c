"""Compare a published `ds` with what was bought in its label window.

scores + candidates + events --> Recall, NDCG, AUC, GAUC, NE beside retrieval order, popularity and chance --> metrics
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession, functions as F

from gesr_core.config import Config
from gesr_core.dates import request_time_us, shift_ds
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.errors import InputError
from gesr_core.io.session import open_session
from gesr_core.io.tables import one_ds, read_input, read_table, table_exists, table_version
from gesr_core.join.items import before
from gesr_core.join.labels import positives
from gesr_core.metrics.comparison import Comparison, measure
from gesr_core.metrics.table import format_table
from gesr_core.names import Col, Role
from gesr_core.sink.metrics import write_metrics

log = logging.getLogger("evaluate")


def main(argv: Sequence[str]) -> None:
    """Measure, print the table, and write this publication's rows of `metrics` where they do not stand already.

    Raises:
        InputError: the `ds` is not published, its label window is not complete in `events`, or it was measured before
            and came out otherwise.
        AnotherRunWon: another run measured the same publication meanwhile.
    """
    args = _parser().parse_args(argv)
    config = job_config(args)
    with open_session(f"evaluate {args.ds}", spark_keys=config.spark) as spark:
        # Before anything is read: who read older events than a rival did finds its commit.
        ref = config.table(Role.METRICS)
        from_version = table_version(spark, ref) if table_exists(spark, ref) else -1
        comparison = _read(spark, config, args)
        metrics = measure(comparison, settings=config.evaluation)
        print(format_table(metrics, ks=config.evaluation.ks, title=_title(args, comparison)), flush=True)
        written = write_metrics(
            spark, ref, [astuple(metric) for metric in metrics], ds=args.ds, run_id=comparison.run_id,
            settings=_settings(config), from_version=from_version, replace=args.replace,
        )  # fmt: skip
        log.info("metrics of run %s: %s", comparison.run_id, "written" if written else "there already, nothing to do")


def _read(spark: SparkSession, config: Config, args: argparse.Namespace) -> Comparison:
    task = max(config.labels.tasks, key=lambda task: task.score_weight)
    target = config.table(Role.SCORES, target=args.target)
    scores = read_table(spark, target, version=table_version(spark, target)).where(F.col(Col.DS) == args.ds)
    standing = scores.select(Col.RUN_ID, Col.MODEL_VERSION).first()
    if standing is None:
        raise InputError(f"{args.target} holds nothing for ds {args.ds}: run jobs/score_daily.py --ds {args.ds}")
    events, candidates = (
        read_input(spark, config.table(role), version=table_version(spark, config.table(role)))
        for role in (Role.EVENTS, Role.CANDIDATES)
    )
    _require_complete_window(events, args.ds, window_days=config.labels.window_days)
    truth = positives(events, dates=[args.ds], window_days=config.labels.window_days, tasks=[task])
    return Comparison(
        run_id=standing[Col.RUN_ID],
        model_version=standing[Col.MODEL_VERSION],
        task=task.name,
        scores=scores,
        candidates=one_ds(candidates, args.ds),
        truth=truth.select(Col.USER_ID, Col.ITEM_ID),
        popularity=_popularity(events, args.ds, days=config.evaluation.popularity_days),
    )


def _popularity(events: DataFrame, ds: str, *, days: int) -> DataFrame:
    since = F.timestamp_micros(F.lit(request_time_us(shift_ds(ds, days=-days))))
    recent = events.where(before(Col.EVENT_TS, ds) & (F.col(Col.EVENT_TS) >= since))
    return recent.groupBy(Col.ITEM_ID).agg(F.count_distinct(Col.USER_ID).cast("double").alias("value"))


def _require_complete_window(events: DataFrame, ds: str, *, window_days: int) -> None:
    last_day = shift_ds(ds, days=window_days - 1)
    newest_us = events.agg(F.max(F.unix_micros(Col.EVENT_TS))).collect()[0][0]
    if newest_us is None or newest_us < request_time_us(last_day):
        raise InputError(f"the label window of ds {ds} runs to {last_day}, but events has nothing from that day on yet")


def _settings(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", include={"evaluation", "labels"})


def _title(args: argparse.Namespace, comparison: Comparison) -> str:
    return f"ds {args.ds}, {args.target}, checkpoint {comparison.model_version}, task {comparison.task}"


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("evaluate.py", __doc__)
    parser.add_argument("--target", default="scores", help="published table to evaluate (default: scores)")
    parser.add_argument(
        "--replace", action="store_true", help="replace metrics of the same publication that came out otherwise before"
    )
    return parser


run = partial(run_job, main)

if __name__ == "__main__":
    run()
