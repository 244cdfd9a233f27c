"""What every job's command line shares: options, logging, exit codes. Driver only; imports neither Spark nor torch."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gesr_core.config import CONF_DIR, Config, load_config
from gesr_core.dates import ds_of, request_time
from gesr_core.errors import ConfigurationError, GesrError
from gesr_core.names import ON_DATABRICKS
from gesr_core.secrets import MaskingFormatter, masked

_EXIT_CODES = """exit codes: 0 done or already done; 1 failed and worth a retry; 2 configuration;
3 input (a table, column, day or checkpoint); 4 the gate refused; 5 another run won"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigurationError(f"{message} (see {self.prog} --help)")


def job_parser(prog: str, description: str, *, with_ds: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that all jobs share."""
    parser = _Parser(
        prog=prog, description=description, epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if with_ds:
        parser.add_argument(
            "--ds",
            required=True,
            type=ds_of,
            metavar="YYYY-MM-DD",
            help="partition date; its request time is 00:00 UTC (2001-02-21-7d: the date seven days before)",
        )
    parser.add_argument(
        "--env",
        default="local",
        help="folder of conf/ whose files override conf/base; a,b: those of b override a's (default: local)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override one setting, e.g. --set scoring.top_k=50; may be repeated; the value is YAML",
    )  # fmt: skip
    parser.add_argument(
        "--conf-dir",
        type=Path,
        default=CONF_DIR,
        help="configuration folder (default: the project's conf/, in a wheel the one that it was built with)",
    )
    return parser


def job_config(args: argparse.Namespace) -> Config:
    """Load the configuration that the command line names, and check `--ds`.

    Raises:
        ConfigurationError: all configuration errors at once, or a malformed `--ds`.
    """
    if getattr(args, "ds", None) is not None:
        request_time(args.ds)
    return load_config(args.env, overrides=args.overrides, conf_dir=args.conf_dir)


def run_job(main: Callable[[Sequence[str]], None]) -> None:
    """Run a job's `main` and end the process with the exit code of docs/operations.md; return on success.

    The last line of a failure says what happened: schedulers show it. Databricks has no exit codes and shows what was
    raised, so there the error is raised.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("py4j", "pyspark"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        main(sys.argv[1:])
    except GesrError as err:
        logging.debug("failed", exc_info=True)
        if ON_DATABRICKS in os.environ:
            raise
        _end(f"{type(err).__name__}: {err}", err.exit_code)
    except Exception as err:
        # The outermost frame: everything unforeseen is worth a retry, and keeps its traceback.
        logging.exception("unexpected failure")
        if ON_DATABRICKS in os.environ:
            raise
        _end(f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else 'no message'}", 1)


def _end(message: str, exit_code: int) -> None:
    print(masked(message), file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: a Spark that is still shutting down its own threads must not change the code.
    os._exit(exit_code)
