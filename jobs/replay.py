"""Repeat a published run of score_daily from its own pins, and see that the same table comes out, bit for bit.

ledger -> versions, checkpoint, settings, halvings -> the same request rows and plan -> a table beside `scores`
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from functools import partial

from gesr_core.daily.replay import replay
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.executors import await_executor
from gesr_core.io.session import open_session

log = logging.getLogger("replay")


def main(argv: Sequence[str]) -> None:
    """Score the run again, and compare.

    Raises:
        InputError: the run or something that it pinned is gone.
        GesrError: another table came out.
    """
    args = _parse(argv)
    config = job_config(args)
    started_s = time.monotonic()
    with open_session(f"replay {args.run_id}", spark_keys=config.spark) as spark:
        await_executor(spark, wait_s=config.scoring.executor_wait_s)
        users = replay(spark, config, args.run_id, to=args.to)
    log.info(
        "run %s replayed to %s in %.0f s: %s users, each with the same ranking, scores and logits",
        args.run_id, args.to, time.monotonic() - started_s, f"{users:,}",
    )  # fmt: skip


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("replay.py", __doc__, with_ds=False)
    parser.add_argument("run_id", metavar="RUN_ID", help="a run that published: column run_id of scores, or status.py")
    parser.add_argument(
        "--to",
        default="scores_replay",
        help="table to write to, beside scores; its ds is replaced (default: scores_replay)",
    )
    return parser.parse_args(argv)


run = partial(run_job, main)

if __name__ == "__main__":
    run()
