"""`python -m benchmarks.histories`: a day's update of the histories against a rebuild of 120 days, by the job itself.

Made-up events of a shop: visits of users drawn at random, seven events each, as Ta Feng has them. In each repeat
one event is delivered and updated (what an update costs whatever it does), then a whole day, then everything is
rebuilt. Progress to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pyspark.sql import SparkSession, functions as F

from benchmarks.line import RESULTS, emit, goal, goal_in_words, machine, versions
from benchmarks.sessions import all_cores
from gesr_core.config import PROJECT_ROOT, Config, load_config
from gesr_core.io.changes import CHANGE_FEED_PROPERTY
from gesr_core.io.tables import read_table
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns
from gesr_core.sink.tables import append, create_table
from jobs import update_histories

log = logging.getLogger("benchmarks.histories")

_DAYS: Final = 120
# Three of 120 days: an update reads the new day, and the histories of its users.
_SHARE: Final = 3 / _DAYS
_FIRST_DAY: Final = dt.date(2024, 1, 1)
_ITEMS: Final = 100_000
_VISIT: Final = 7


def main(argv: Sequence[str]) -> None:
    """Build, update, rebuild, compare, report."""
    args = _parse(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, all_cores("histories", Path(folder)) as spark:
        options = ["--set", f"tables.root={folder}/tables"]
        config = load_config("local", overrides=options[1::2])
        columns = written_columns(Role.EVENTS)
        create_table(spark, config.table(Role.EVENTS), columns, properties={CHANGE_FEED_PROPERTY: "true"})
        _deliver(spark, config, first_day=0, days=_DAYS, per_day=args.per_day, users=args.users)
        _update(options, day=_DAYS)
        day = _DAYS
        for repeat in range(args.repeats):
            _deliver(spark, config, first_day=day, days=1, per_day=1, users=args.users)
            fixed_s = _update(options, day=day + 1)
            _deliver(spark, config, first_day=day + 1, days=1, per_day=args.per_day, users=args.users)
            update_s = _update(options, day=day + 2)
            updated = _content(spark, config)
            rebuild_s = _update([*options, "--rebuild"], day=day + 2)
            if _content(spark, config) != updated:
                raise AssertionError("the updated histories are not those of the rebuild")
            rows.append({"repeat": repeat, "fixed_s": fixed_s, "update_s": update_s, "rebuild_s": rebuild_s})
            log.info("one event %.1f s, one day %.1f s, all days %.1f s", fixed_s, update_s, rebuild_s)
            day += 2
        users = read_table(spark, config.table(Role.HISTORIES)).count()
        events = read_table(spark, config.table(Role.EVENTS))
        touched = events.where(F.col(Col.DS) == _ds(day - 1)).select(Col.USER_ID).distinct().count()
    medians = {name: statistics.median(row[name] for row in rows) for name in ("fixed_s", "update_s", "rebuild_s")}
    # Of each repeat by itself: the two runs of a repeat stand side by side.
    day_s = statistics.median(row["update_s"] - row["fixed_s"] for row in rows)
    share = day_s / medians["rebuild_s"]
    goals = [
        goal(
            f"a day's update, less its fixed part, over a rebuild of {_DAYS} days",
            goal=_SHARE, value=share, better="lower",
            note=f"({day_s:.1f} s beside {medians['fixed_s']:.1f} s fixed; a rebuild {medians['rebuild_s']:.1f} s)",
        )
    ]  # fmt: skip
    for found in goals:
        print(goal_in_words(found), file=sys.stderr)
    line = {
        "benchmark": "histories",
        "machine": machine(),
        "versions": versions(("pyspark", "delta-spark")),
        "settings": {
            "days": _DAYS, "events_per_day": args.per_day, "users": args.users, "users_with_history": users,
            "users_with_events_on_the_last_day": touched, "events_of_a_visit": _VISIT,
            "master": "local[*]", "repeats": args.repeats, "change_data_feed": True,
        },
        "rows": rows,
        "medians": {**medians, "update_less_fixed_s": day_s},
        # Compared as a hash of all rows, each time.
        "max_score_difference": 0.0,
        "goals": goals,
    }  # fmt: skip
    emit(line, device="cpu", save=args.save)


def _update(options: Sequence[str], *, day: int) -> float:
    started_s = time.perf_counter()
    update_histories.main(["--ds", _ds(day), *options])
    return time.perf_counter() - started_s


def _deliver(spark: SparkSession, config: Config, *, first_day: int, days: int, per_day: int, users: int) -> None:
    """Append events of some days."""
    number = F.col("id") + first_day * per_day
    visit = F.floor(number / _VISIT)

    def drawn(what: Any, salt: int, count: int) -> Any:
        return F.pmod(F.xxhash64(what, F.lit(salt)), F.lit(count))

    day = F.lit(first_day) + (F.col("id") / per_day).cast("int")
    second = F.unix_seconds(F.lit(f"{_FIRST_DAY} 00:00:00").cast("timestamp")) + day * 86_400 + drawn(visit, 3, 86_400)
    columns = {
        Col.USER_ID: drawn(visit, 1, users),
        Col.ITEM_ID: drawn(number, 2, _ITEMS),
        Col.EVENT_TS: F.timestamp_seconds(second),
        Col.ACTION: F.lit("buy"),
        Col.VALUE: drawn(number, 4, 100).cast("double"),
        Col.DS: F.date_format(F.timestamp_seconds(second), "yyyy-MM-dd"),
    }
    events = spark.range(days * per_day).select(*(column.alias(name) for name, column in columns.items()))
    append(events.repartition(Col.DS), config.table(Role.EVENTS))


def _content(spark: SparkSession, config: Config) -> Any:
    rows = read_table(spark, config.table(Role.HISTORIES))
    return rows.agg(F.count(F.lit(1)), F.sum(F.xxhash64(*rows.columns).cast("decimal(38,0)"))).collect()[0]


def _ds(day: int) -> str:
    return (_FIRST_DAY + dt.timedelta(days=day)).isoformat()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.histories", description=__doc__)
    parser.add_argument("--per-day", type=int, default=100_000, help="events of a day (default: 100,000)")
    parser.add_argument("--users", type=int, default=500_000, help="users that events are of (default: 500,000)")
    parser.add_argument("--repeats", type=int, default=5, help="days that are updated; medians count (default: 5)")
    parser.add_argument("--save", action="store_true", help=f"keep the line in {RESULTS.relative_to(PROJECT_ROOT)}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    main(sys.argv[1:])
