"""Compare a published `ds` with what was bought in its label window.

scores + candidates + events --> Recall, NDCG, MRR, AUC, NE, calibration, survival, coverage, novelty and drift, beside
retrieval order, popularity and chance, in every declared segment, with intervals --> metrics
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from pyspark.sql import SparkSession

from gesr_core.config import Config
from gesr_core.dates import request_time
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.errors import ConfigurationError
from gesr_core.evaluation.drift import measure_drift
from gesr_core.evaluation.reading import read_comparison, read_scores
from gesr_core.io.session import open_session
from gesr_core.io.tables import table_exists, table_version
from gesr_core.metrics.comparison import Comparison, compare, measure
from gesr_core.metrics.ranking import Metric
from gesr_core.metrics.table import format_differences, format_table
from gesr_core.names import Role
from gesr_core.sink.metrics import write_metrics

log = logging.getLogger("evaluate")

_DESCRIPTION = f"""\
{__doc__}
With --against or --against-ds a second publication is measured as well, over the users that both have, and the
differences (this one minus the other) are printed and written beside the metrics; docs/metrics.md says what they mean.

  evaluate.py --ds 2001-02-21                                 the publication alone
  evaluate.py --ds 2001-02-21 --target scores_challenger --against scores       two models on one day
  evaluate.py --ds 2001-02-21 --against-ds 2001-02-14         the same target a week earlier
"""


def main(argv: Sequence[str]) -> None:
    """Measure, print the table, and write this publication's rows of `metrics` where they do not stand already.

    Raises:
        InputError: a `ds` is not published, its label window is not complete in `events`, or it was measured before
            and came out otherwise.
        AnotherRunWon: another run measured the same publication meanwhile.
    """
    args = _parse(argv)
    config = job_config(args)
    with open_session(f"evaluate {args.ds}", spark_keys=config.spark) as spark:
        # Before anything is read: who read older events than a rival did finds its commit.
        ref = config.table(Role.METRICS)
        from_version = table_version(spark, ref) if table_exists(spark, ref) else -1
        comparison = read_comparison(spark, config, ds=args.ds, target=args.target)
        metrics, against = _measured(spark, config, args, comparison)
        written = write_metrics(
            spark, ref, [astuple(metric) for metric in metrics], ds=args.ds, run_id=comparison.run_id,
            settings=_settings(config), from_version=from_version, replace=args.replace, against=against,
        )  # fmt: skip
        log.info("metrics of run %s: %s", comparison.run_id, "written" if written else "there already, nothing to do")


def _measured(
    spark: SparkSession, config: Config, args: argparse.Namespace, comparison: Comparison
) -> tuple[list[Metric], str | None]:
    """Measure and print; return the rows, and the run that they are differences from (None: they are none)."""
    title = f"ds {args.ds}, {args.target}, checkpoint {comparison.model_version}, task {comparison.task}"
    if args.against is None and args.against_ds is None:
        metrics = measure(comparison, settings=config.evaluation)
        metrics += measure_drift(
            read_scores(spark, config, target=args.target), ds=args.ds, days=config.evaluation.drift_days
        )
        print(format_table(metrics, ks=config.evaluation.ks, title=title), flush=True)
        return metrics, None
    other_ds, other_target = args.against_ds or args.ds, args.against or args.target
    other = read_comparison(spark, config, ds=other_ds, target=other_target)
    metrics = compare(comparison, other, settings=config.evaluation)
    title += f"\nminus ds {other_ds}, {other_target}, checkpoint {other.model_version}"
    print(format_differences(metrics, title=title), flush=True)
    return metrics, other.run_id


def _settings(config: Config) -> dict[str, Any]:
    decides = {"promote_by", "promote_segment"}
    return config.model_dump(mode="json", include={"evaluation", "labels"}, exclude={"evaluation": decides})


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("evaluate.py", _DESCRIPTION)
    parser.add_argument("--target", default="scores", help="published table to evaluate (default: scores)")
    parser.add_argument("--against", metavar="TARGET", help="compare with what this table has of the ds instead")
    parser.add_argument(
        "--against-ds", metavar="YYYY-MM-DD", help="compare with this ds instead (of --against, if given)"
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace metrics of the same publication that came out otherwise before"
    )
    args = parser.parse_args(argv)
    if args.against_ds is not None:
        request_time(args.against_ds)
    if args.against is not None and (args.against, args.against_ds or args.ds) == (args.target, args.ds):
        raise ConfigurationError(f"--against {args.against} is what is evaluated: name another table, or --against-ds")
    return args


run = partial(run_job, main)

if __name__ == "__main__":
    run()
