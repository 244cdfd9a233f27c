"""Score every retrieved candidate of a `ds` and publish the best K per user: THE main path.

histories + candidates -> request rows -> mapInArrow(scorer) -> staging, shard by shard -> gate -> one fenced commit
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from functools import partial

from pyspark.sql import SparkSession

from gesr_core.config import GateConfig
from gesr_core.daily.opening import already_published, open_run
from gesr_core.daily.pinning import pin_newest
from gesr_core.daily.run import DailyRun
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.executors import await_executor
from gesr_core.failpoints import reach
from gesr_core.io.session import open_session
from gesr_core.training.registry import AskedCheckpoint

log = logging.getLogger("score_daily")


def main(argv: Sequence[str]) -> None:
    """Open or resume a run, score the missing shards, pass the gate, publish.

    Raises:
        GesrError: with the exit code of docs/operations.md.
    """
    args = _parser().parse_args(argv)
    config = job_config(args)
    started_s = time.monotonic()
    with open_session(f"score_daily {args.ds}", spark_keys=config.spark) as spark:
        await_executor(spark, wait_s=config.scoring.executor_wait_s)
        if args.dry_run:
            pin_newest(spark, config, args, log_plan=True)
        elif not already_published(spark, config, args):
            _run(spark, open_run(spark, config, args))
    log.info("done in %.0f s", time.monotonic() - started_s)


def _run(spark: SparkSession, run: DailyRun) -> None:
    for wave, shards in enumerate(run.waves(), start=1):
        attempt_id = run.stage(shards)
        reach(f"staged_wave_{wave}")
        run.accept(shards, attempt_id)
        reach(f"after_wave_{wave}")
    manifest = run.pass_gate()
    reach("before_publish")
    run.publish(manifest)
    reach("after_publish")
    run.finish()


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("score_daily", __doc__)
    parser.add_argument(
        "--checkpoint",
        type=AskedCheckpoint,
        default=AskedCheckpoint(None),
        metavar="NAME|NAME/ID|FOLDER|models:/NAME@ALIAS",
        help="a model's newest checkpoint, one of its checkpoints, a folder, or a version in MLflow's registry "
        "(models:/NAME@ALIAS, models:/NAME/VERSION); default: training.model",
    )
    parser.add_argument(
        "--target", default="scores", help="table to publish to; a second model gets its own (default: scores)"
    )
    parser.add_argument("--replace", action="store_true", help="score and publish again a ds that is published already")
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        choices=sorted(GateConfig.model_fields),
        metavar="CHECK",
        help="publish though this bound of the gate is broken (gate.<CHECK>), on record; staged shards are not scored "
        "again; may be repeated",
    )
    parser.add_argument(
        "--profile",
        metavar="FOLDER",
        help="write a trace of each task's first window there, for Perfetto or chrome://tracing; all hosts must see it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check configuration, schemas, freshness, checkpoint, item states and device; score nothing",
    )
    return parser


run = partial(run_job, main)

if __name__ == "__main__":
    run()
