"""Say what stands for a ds, which runs there were and how far each came: from the ledger, changing nothing.

ledger + scores -> lines on standard output
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from gesr_core.daily.day import Day
from gesr_core.daily.status import describe
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.errors import ConfigurationError, InputError
from gesr_core.io.session import open_session
from gesr_core.io.tables import table_exists
from gesr_core.secrets import masked
from gesr_core.sink.ledger import read_run
from gesr_core.sink.run import JOB


def main(argv: Sequence[str]) -> None:
    """Print the lines.

    Raises:
        InputError: there is no ledger, or it does not know the run.
    """
    args = _parse(argv)
    config = job_config(args)
    with open_session("status", spark_keys=config.spark) as spark:
        day = Day(spark, config, args.ds or "", args.target)
        if not table_exists(spark, day.ledger_ref):
            raise InputError(f"there is no ledger at {day.ledger_ref.location}: nothing was run yet")
        if args.run:
            rows = [row for row in read_run(spark, day.ledger_ref, args.run) if row.job == JOB]
            if not rows:
                raise InputError(f"the ledger knows no run {args.run!r} of {JOB}")
            day = Day(spark, config, rows[0].ds, rows[0].target)
        lines = describe(
            day.ledger(), day.standing(), ds=day.ds, target=day.target, shards=config.scoring.shards, run_id=args.run
        )
        print(*map(masked, lines), sep="\n", flush=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("status.py", __doc__, with_ds=False)
    parser.add_argument("--ds", metavar="YYYY-MM-DD", help="a day")
    parser.add_argument("--run", metavar="RUN_ID", help="or one run")
    parser.add_argument("--target", default="scores", help="table that the day was published to (default: scores)")
    args = parser.parse_args(argv)
    if bool(args.ds) == bool(args.run):
        raise ConfigurationError("status.py: give --ds or --run")
    return args


run = partial(run_job, main)

if __name__ == "__main__":
    run()
