"""Write the report of a published ds: one HTML page that opens anywhere, without a network.

ledger + scores + metrics + quarantine, and of ten users what the run read and what they bought --> one HTML file

On the page: what the run pinned, where the time went, shards, the gate's checks, scores beside those of former ds,
metrics with intervals by segment, calibration, all evaluated publications of this ds side by side, quarantine, and ten
users. Before the label window has passed and evaluate.py has run, the page says what is missing: then write it again.
It changes no table. matplotlib and jinja2 must be installed (the extra `report`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gesr_core.config import Config
from gesr_core.daily.reported import read_report
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.errors import ConfigurationError
from gesr_core.io.session import open_session
from gesr_core.report.facts import Report


def main(argv: Sequence[str]) -> None:
    """Write the page and print its path.

    Raises:
        ConfigurationError: no folder is configured and no file given, or matplotlib or jinja2 are not installed.
        InputError: the target holds nothing of the `ds`, the ledger does not know the run, or `events` cannot be read.
    """
    args = _parser().parse_args(argv)
    config = job_config(args)
    out, render = _out(config, args), _renderer()
    with open_session(f"report {args.ds}", spark_keys=config.spark) as spark:
        report = read_report(spark, config, ds=args.ds, target=args.target, env=args.env)
    _write(render(report), out)
    print(f"report: {out}", flush=True)


def _out(config: Config, args: argparse.Namespace) -> Path:
    # Refuses a target that is no plain name, which would become part of a path.
    config.table("scores", target=args.target)
    if args.out is not None:
        return Path(args.out).absolute()
    if config.storage.reports is None:
        raise ConfigurationError("no folder for reports is configured: set storage.reports, or give --out FILE")
    return config.folder("reports") / f"{args.target}_{args.ds}.html"


def _renderer() -> Callable[[Report], str]:
    """The page's libraries are no part of what scoring needs."""
    try:
        from gesr_core.report.page import render
    except ModuleNotFoundError as err:
        if err.name is None or err.name.partition(".")[0] not in ("matplotlib", "jinja2"):
            raise
        raise ConfigurationError(f"the report needs {err.name}: pip install 'matplotlib>=3.8' 'jinja2>=3.1'") from err
    return render


def _write(page: str, out: Path) -> None:
    """Write the page in one step: who opens it meanwhile sees the former one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.part")
    beside.write_text(page, encoding="utf-8")
    beside.replace(out)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("report.py", __doc__)
    parser.add_argument("--target", default="scores", help="published table to report on (default: scores)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write (default: <storage.reports>/<target>_<ds>.html); one that is there is replaced",
    )
    return parser


run = partial(run_job, main)

if __name__ == "__main__":
    run()
