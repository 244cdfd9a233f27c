"""Ta Feng as a prepared data set: the project's own retrieval, histories, impressions and item tables, by Spark.

Every ds has candidates that were fitted on what lay before it alone. A test ds keeps the whole candidate lists of the
users that buy in its label window; of the other users, who matter to calibration alone, a share of users and pairs.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession, functions as F

from benchmarks.quality.folders import DOWNLOADS, ROOT, code_hash, key_of, write_manifest
from benchmarks.quality.prepared import REQUEST_ID, Regime, Step
from gesr_core.config import PROJECT_ROOT, Config, ImpressionsConfig, load_config
from gesr_core.dates import request_time_us
from gesr_core.io.session import open_session
from gesr_core.io.tables import read_input
from gesr_core.join.histories import build_histories
from gesr_core.join.impressions import build_impressions, sample_users
from gesr_core.join.labels import positives
from gesr_core.join.requests import training_requests, users_at
from gesr_core.join.retrieval import Retrieval, fit_retrieval, retrieve
from gesr_core.metrics.ranking import one_row_per_user, retrieval_order, sources_of, usable_candidates
from gesr_core.names import Col, Role, label
from gesr_core.samples import ta_feng as sample
from gesr_core.training_set import item_table
from jobs import load_sample

log = logging.getLogger("benchmarks.quality")

NAME: Final = "ta_feng"
REGIME: Final = Regime(
    train=("2000-12-28", "2001-01-04", "2001-01-11", "2001-01-18", "2001-01-25"),
    validation="2001-02-01",
    # Each learned label window closes by the request time of the test.
    steps=(
        Step("2001-02-01", "2001-02-08"),
        Step("2001-02-08", "2001-02-15"),
        Step("2001-02-14", "2001-02-21"),
    ),
)
QUICK_REGIME: Final = Regime(
    train=("2001-01-18", "2001-01-25"), validation="2001-02-01", steps=(Step("2001-02-01", "2001-02-08"),)
)
# Own items, 200 popular and ALS, 500 in all, for every user with an event.
_CANDIDATES: Final = (
    "candidates.max_candidates=500", "candidates.own_items=500", "candidates.popular_items=200",
    "candidates.als_items=500", "candidates.active_days=150",
)  # fmt: skip
# One in five who buys has more than the sample's 64 events; the rivals see them all.
_HISTORIES: Final = ("histories.max_events=128", "scoring.history_buckets=[8, 16, 32, 64, 128]")
# To the sample's features: matches of the last days, what sold in the last days (a promotion shows in one), and whether
# an item is one that is bought again.
_FEATURES: Final = (
    "features.hard_match=[{history: item_id, candidate: item_id}, {history: product_subclass, candidate: "
    "product_subclass}, {history: item_id, candidate: item_id, window_days: 7}, {history: item_id, candidate: "
    "item_id, window_days: 28}, {history: product_subclass, candidate: product_subclass, window_days: 28}]",
    "features.item_statistics=[{name: buyers_1d, kind: users, window_days: 1}, "
    "{name: buyers_3d, kind: users, window_days: 3}, {name: buyers_7d, kind: users, window_days: 7}, "
    "{name: buyers_14d, kind: users, window_days: 14}, {name: buyers_28d, kind: users, window_days: 28}, "
    "{name: days_since_first_sale, kind: days_since_first}, {name: mean_spend, kind: mean_value, window_days: 120}, "
    "{name: repeat_share, kind: repeat_share}]",
)
OVERRIDES: Final = (*_HISTORIES, *_FEATURES)
# Of the users who buy nothing in a test's label window: enough for calibration to be within a few per mille.
_OTHER_USERS: Final = 0.25
_OTHER_PAIRS: Final = 0.2
_FILES: Final = 8


@dataclass(frozen=True)
class Shares:
    """How much of the data is learned (as in `impressions`), and which share of the users is measured."""

    user_rate: float
    unlabelled_user_rate: float
    negative_rate: float
    test_users: float


# With the validation ds 2.5M pairs are learned before the first test. Most users buy nothing in a label window: a share
# of those stands for all of them, so that every label is learned. A request's history costs as much as some dozens of
# its pairs: so more pairs of fewer users.
FULL: Final = Shares(user_rate=1.0, unlabelled_user_rate=0.1, negative_rate=0.125, test_users=0.4)
QUICK: Final = Shares(user_rate=0.3, unlabelled_user_rate=0.1, negative_rate=0.06, test_users=0.2)


def base_config() -> Config:
    """Return the sample's configuration with the candidates of this benchmark and tables of its own."""
    tables = ROOT / NAME / "tables"
    return load_config("local", overrides=[*_CANDIDATES, *OVERRIDES, f"tables.root={tables}"])


def prepare(*, quick: bool) -> Path:
    """Return the prepared folder, built by Spark unless it is there already; a stopped build goes on ds by ds."""
    config, regime, shares = base_config(), QUICK_REGIME if quick else REGIME, QUICK if quick else FULL
    sections = config.model_dump(mode="json", include={"features", "labels", "histories", "candidates", "impressions"})
    code = [PROJECT_ROOT / "gesr_core/join", PROJECT_ROOT / "gesr_core/samples", Path(__file__)]
    key = key_of([sample.WHEEL.sha256, sections, regime.to_json(), repr(shares), code_hash(code)])
    folder = ROOT / NAME / f"prepared-{key}"
    if not folder.is_dir():
        started_s, draft = time.monotonic(), folder.with_name(f"building-{key}")
        draft.mkdir(parents=True, exist_ok=True)
        with open_session("benchmarks.quality", spark_keys=config.spark) as spark:
            load_sample.main(["--downloads", str(DOWNLOADS), "--set", f"tables.root={config.tables.root}"])
            build = Build(spark, config, regime, shares, draft)
            for ds in build.missing():
                build.add(ds)
            build.finish(key)
        draft.rename(folder)
        log.info("%s prepared in %.0f s: %s", NAME, time.monotonic() - started_s, folder)
    return folder


class Build:
    """A folder that grows ds by ds: what a ds holds follows from what lay before it and from its label window alone."""

    def __init__(self, spark: SparkSession, config: Config, regime: Regime, shares: Shares, folder: Path) -> None:
        self.config, self.regime, self.shares, self.folder = config, regime, shares, folder
        self.tables = {role: read_input(spark, config.table(role)) for role in (Role.EVENTS, Role.ITEMS, Role.USERS)}
        self.events = self.tables[Role.EVENTS]
        # The validation ds is measured too: rivals are tuned on it.
        self.tests = sorted({regime.validation, *regime.tests})
        learned = {name: value for name, value in asdict(shares).items() if name != "test_users"}
        self.settings = config.impressions.model_copy(update={**learned, "unexposed_items": 0})
        self.task_names = [task.name for task in config.labels.tasks]

    def missing(self) -> list[str]:
        """Return the ds that are not there yet, in order."""
        return [ds for ds in sorted({*self.regime.learned, *self.tests}) if not self._mark(ds).is_file()]

    def add(self, ds: str) -> None:
        """Write what a ds holds; its mark comes last."""
        started_s = time.monotonic()
        for part in ("learn", "test"):
            shutil.rmtree(self.folder / part / ds, ignore_errors=True)
        with ExitStack() as caches:

            def cache(df: DataFrame) -> DataFrame:
                caches.callback(df.persist().unpersist)
                return df

            table = item_table(self.tables[Role.ITEMS], self.events, ds=ds, features=self.config.features)
            self._write_table(table, "items", ds)
            retrieval = fit_retrieval(self.events, dates=[ds], settings=self.config.candidates, cache=cache)
            if ds in self.regime.learned:
                self._learned(retrieval, ds)
            if ds in self.tests:
                self._test(retrieval, ds, cache=cache)
        self._mark(ds).touch()
        log.info("%s %s built in %.0f s", NAME, ds, time.monotonic() - started_s)

    def finish(self, key: str) -> None:
        """Write what belongs to no single ds, and the manifest."""
        flat = self.events.select(
            Col.USER_ID, Col.ITEM_ID, F.unix_micros(Col.EVENT_TS).alias("event_us"), Col.VALUE
        ).toArrow()
        order = [(name, "ascending") for name in ("event_us", Col.USER_ID, Col.ITEM_ID, Col.VALUE)]
        pq.write_table(flat.sort_by(order), self.folder / "events.parquet")
        known = self.events.where(F.unix_micros(Col.EVENT_TS) < request_time_us(self.regime.validation))
        counted = known.groupBy(Col.ITEM_ID).agg(F.count(F.lit(1)).alias("events"))
        pq.write_table(counted.toArrow().sort_by(Col.ITEM_ID), self.folder / "item_events.parquet")
        train = pa.concat_tables([pq.read_table(self.folder / "learn" / ds) for ds in self.regime.train])
        mixed = train.take(np.random.default_rng(self.settings.seed).permutation(train.num_rows))
        (self.folder / "train").mkdir(exist_ok=True)
        pq.write_table(mixed, self.folder / "train/part-0.parquet", row_group_size=8_192)
        facts = asdict(self.shares)
        write_manifest(self.folder, name=NAME, key=key, regime=self.regime, tasks=self.task_names, facts=facts)

    def _mark(self, ds: str) -> Path:
        return self.folder / f"built-{ds}"

    def _learned(self, retrieval: Retrieval, ds: str) -> None:
        """Write thinned impressions of a share of the users, as `build_candidates --impressions` makes them."""
        users = sample_users(retrieval.users, self._positives(ds), settings=self.settings)
        candidates = retrieve(retrieval, users, settings=self.config.candidates)
        impressions = self._impressions(candidates, users, retrieval, ds, self.settings)
        self._write(self._requests(impressions, ds), "learn", ds)

    def _test(self, retrieval: Retrieval, ds: str, *, cache: Callable[[DataFrame], DataFrame]) -> None:
        """Write whole candidate lists of the users who buy, thinned ones of a share of the others, and the truth."""
        rates = {"user_rate": self.shares.test_users, "unlabelled_user_rate": _OTHER_USERS}
        asked = self.settings.model_copy(update={**rates, "negative_rate": 1.0})
        others = self.settings.model_copy(update={**rates, "negative_rate": _OTHER_PAIRS})
        truth = cache(self._positives(ds))
        users = cache(sample_users(retrieval.users, truth, settings=asked))
        candidates = cache(retrieve(retrieval, users, settings=self.config.candidates))
        keys = [Col.DS, Col.USER_ID]
        whole = users.join(truth, on=keys, how="left_semi")
        thinned = users.join(truth, on=keys, how="left_anti")
        impressions = self._impressions(candidates, whole, retrieval, ds, asked).unionByName(
            self._impressions(candidates, thinned, retrieval, ds, others)
        )
        self._write(self._requests(impressions, ds).withColumn(REQUEST_ID, F.col(Col.USER_ID)), "test", ds)
        self._write_truth(sample_users(truth, truth, settings=asked), ds)
        self._write_order(candidates, ds)

    def _positives(self, ds: str) -> DataFrame:
        labels = self.config.labels
        return positives(self.events, dates=[ds], window_days=labels.window_days, tasks=labels.tasks)

    def _impressions(
        self, candidates: DataFrame, users: DataFrame, retrieval: Retrieval, ds: str, settings: ImpressionsConfig
    ) -> DataFrame:
        return build_impressions(
            candidates.join(users.select(Col.DS, Col.USER_ID), on=[Col.DS, Col.USER_ID], how="left_semi"),
            self.events,
            users=users,
            items=retrieval.numbered.items,
            dates=[ds],
            labels=self.config.labels,
            settings=settings,
        )

    def _requests(self, impressions: DataFrame, ds: str) -> DataFrame:
        """Return labelled request rows, each with its user's history as of the ds."""
        names = [feature.name for feature in self.config.features.user]
        history = self.config.histories
        return training_requests(
            impressions,
            build_histories(self.events, ds=ds, max_events=history.max_events, shards=1),
            users_at(self.tables[Role.USERS], ds=ds, features=names),
            ds=ds,
            history_window_days=history.window_days,
            tasks=self.task_names,
            user_features=names,
        )

    def _write(self, rows: DataFrame, part: str, ds: str) -> None:
        """Write rows in the order of a hash, as training_set.py does: the same in every build."""
        folder = self.folder / part / ds
        place = F.xxhash64(Col.DS, Col.USER_ID)
        shuffled = rows.repartition(_FILES, place).sortWithinPartitions(place, Col.DS, Col.USER_ID)
        shuffled.write.mode("error").parquet(folder.as_uri())
        count = sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))
        log.info("%s/%s: %d requests", part, ds, count)

    def _write_truth(self, truth: DataFrame, ds: str) -> None:
        labels = [label(task) for task in self.task_names]
        rows = truth.select(F.col(Col.USER_ID).alias(REQUEST_ID), Col.USER_ID, Col.ITEM_ID, *labels).toArrow()
        self._write_table(rows.sort_by([(REQUEST_ID, "ascending"), (Col.ITEM_ID, "ascending")]), "truth", ds)

    def _write_order(self, candidates: DataFrame, ds: str) -> None:
        usable = usable_candidates(candidates)
        order = retrieval_order(one_row_per_user(usable), sources=sources_of(usable))
        rows = order.select(F.col(Col.USER_ID).alias(REQUEST_ID), "items").toArrow()
        self._write_table(rows.sort_by(REQUEST_ID), "order", ds)

    def _write_table(self, table: pa.Table, part: str, ds: str) -> None:
        (self.folder / part).mkdir(exist_ok=True)
        pq.write_table(table, self.folder / part / f"{ds}.parquet")
