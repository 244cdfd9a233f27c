"""Add the columns of new tasks to a table of scores: the explicit step by which what other teams read grows.

labels.tasks + scores --> scores with a logit of each task; staging with it
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from pyspark.sql import SparkSession

from gesr_core.config import Config, TableRef
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.io.session import open_session
from gesr_core.io.tables import read_table, table_exists
from gesr_core.names import Role
from gesr_core.sink.migration import add_logits, logits_to_add

log = logging.getLogger("migrate")

_DESCRIPTION = """\
Add to a table of scores, and to staging, the logit of every task that labels.tasks declares and `ranked` does not have
yet, at the task's place. Only metadata changes: days that were published before hold null there. Run it while nothing
scores, after you told the table's readers (docs/contract.md) and before the first run of a checkpoint that knows the
task, which is refused until then. Run again, it does nothing. A column is never taken away or moved.

  migrate.py --env prod --dry-run                       say which columns would come
  migrate.py --env prod
  migrate.py --env prod --target scores_challenger      a second model's table
"""


def main(argv: Sequence[str]) -> None:
    """Add what is missing.

    Raises:
        InputError: there is no such table, or it cannot become what is wanted by adding fields.
    """
    args = _parse(argv)
    config = job_config(args)
    tasks = [task.name for task in config.labels.tasks]
    with open_session("migrate", spark_keys=config.spark) as spark:
        # All are checked before any is changed.
        todo = [
            (ref, logits_to_add(read_table(spark, ref).schema, tasks=tasks, where=f"{ref.role} ({ref.location})"))
            for ref in _tables(spark, config, target=args.target)
        ]
        for ref, additions in todo:
            names = ", ".join(name for name, _ in additions)
            if not additions:
                log.info("%s has the logit of every task: nothing to do", ref.role)
            elif args.dry_run:
                log.info("%s would get %s; nothing was changed", ref.role, names)
            else:
                add_logits(spark, ref, additions)
                log.info("%s has %s now; days published before hold null there", ref.role, names)


def _tables(spark: SparkSession, config: Config, *, target: str) -> Iterator[TableRef]:
    yield config.table(Role.SCORES, target=target)
    staging = config.table(Role.STAGING)
    if table_exists(spark, staging):
        yield staging


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("migrate.py", _DESCRIPTION, with_ds=False)
    parser.add_argument("--target", default="scores", help="the table of scores to add to (default: scores)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser.parse_args(argv)


run = partial(run_job, main)

if __name__ == "__main__":
    run()
