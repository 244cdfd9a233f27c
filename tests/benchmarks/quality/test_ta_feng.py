"""The Spark build on toy tables: what each ds may know, and whom it measures."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from benchmarks.quality.prepared import Prepared, Regime, Step, open_prepared
from benchmarks.quality.ta_feng import Build, Shares
from gesr_core.dates import request_time, request_time_us
from tests.toy import toy_config, toy_events, write_toy_inputs

# One build of three ds for all tests here: some dozens of Spark jobs.
pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]

# The second step is there for what it learns, and measures what the first does.
REGIME = Regime(("2024-02-24",), "2024-03-02", (Step("2024-03-02", "2024-03-09"), Step("2024-03-09", "2024-03-09")))
TEST = REGIME.tests[0]
EVENTS = toy_events()


@pytest.fixture(scope="module")
def build(spark_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build of three ds; a share of the pairs and all users."""
    root = tmp_path_factory.mktemp("ta_feng")
    config = toy_config(root / "tables", "candidates.als_items=0", "candidates.active_days=60")
    write_toy_inputs(spark_session, config, candidates=[])
    (root / "prepared").mkdir()
    shares = Shares(user_rate=1.0, unlabelled_user_rate=0.5, negative_rate=0.5, test_users=1.0)
    build = Build(spark_session, config, REGIME, shares, root / "prepared")
    for ds in build.missing():
        build.add(ds)
    build.finish("toy")
    return build


@pytest.fixture
def prepared(build: Build) -> Prepared:
    return open_prepared(build.folder)


def bought(ds: str) -> dict[int, set[int]]:
    """What each user bought in the label window of a ds."""
    start = request_time(ds)
    found: dict[int, set[int]] = defaultdict(set)
    for user, item, when, *_ in EVENTS:
        if start <= when < start + dt.timedelta(days=7):
            found[user].add(item)
    return found


def test_truth_is_all_that_was_bought_in_the_window_retrieved_or_not(prepared: Prepared) -> None:
    truth = pq.read_table(prepared.folder / "truth" / f"{TEST}.parquet").to_pylist()
    found: dict[int, set[int]] = defaultdict(set)
    for row in truth:
        found[row["user_id"]].add(row["item_id"])
    assert found == bought(TEST)
    # User 0 has no event before and so no candidates, and counts all the same.
    assert 0 in prepared.test(TEST).unit_U


def test_buyers_keep_whole_lists_and_others_stand_for_those_left_out(prepared: Prepared) -> None:
    test, buyers = prepared.test(TEST), bought(TEST)
    is_buyer = np.isin(test.user_P, list(buyers))
    assert set(test.weight_P[is_buyer].tolist()) == {1.0}
    assert test.weight_P[~is_buyer] == pytest.approx(20.0)
    assert test.label_PS[~is_buyer].sum() == 0


def test_candidates_of_a_user_are_labelled_by_what_came_later_and_hold_what_came_before(prepared: Prepared) -> None:
    test, buyers = prepared.test(TEST), bought(TEST)
    for user, item, label in zip(test.user_P, test.item_P, test.label_PS[:, 0], strict=True):
        assert label == (item in buyers.get(user, ()))
    own = {(user, item) for user, item, when, *_ in EVENTS if when < request_time(TEST)}
    listed = set(zip(test.user_P.tolist(), test.item_P.tolist(), strict=True))
    assert {pair for pair in own if pair[0] in buyers} <= listed


def test_histories_and_statistics_stop_at_each_ds(prepared: Prepared) -> None:
    for part, ds in (("learn", "2024-02-24"), ("learn", "2024-03-02"), ("test", TEST)):
        rows = pq.read_table(prepared.folder / part / ds)
        newest = max(max(times, default=0) for times in rows["history_time_s"].to_pylist())
        assert newest < request_time_us(ds) // 1_000_000
        items = pq.read_table(prepared.folder / "items" / f"{ds}.parquet")
        counted = dict(zip(items["item_id"].to_pylist(), items["buyers_28d"].to_pylist(), strict=True))
        since = request_time(ds) - dt.timedelta(days=28)
        buyers = {(item, user) for user, item, when, *_ in EVENTS if since <= when < request_time(ds)}
        assert {item: n for item, n in counted.items() if n} == {
            item: sum(1 for i, _ in buyers if i == item) for item, _ in buyers
        }


def test_every_measured_candidate_has_its_place_in_retrieval_order(prepared: Prepared) -> None:
    test = prepared.test(TEST)
    place_P = prepared.places(test)
    assert place_P.min() >= 0
    of_unit = place_P[test.unit_P == np.searchsorted(test.unit_U, sorted(bought(TEST))[1])]
    assert sorted(of_unit.tolist()) == list(range(len(of_unit)))


def test_the_training_dates_are_mixed_and_known_items_lie_before_the_validation(prepared: Prepared) -> None:
    train = prepared.training_set()
    learned = pq.read_table(prepared.folder / "learn" / REGIME.train[0])
    assert train.training.rows == learned.num_rows
    before = [item for _, item, when, *_ in EVENTS if when < request_time(REGIME.validation)]
    counts = dict(zip(train.item_events["item_id"].to_pylist(), train.item_events["events"].to_pylist(), strict=True))
    assert counts == {item: before.count(item) for item in set(before)}


def test_who_buys_is_learned_and_a_share_of_the_others_stands_for_all(prepared: Prepared) -> None:
    weights: dict[bool, set[float]] = {True: set(), False: set()}
    left_out = 0
    for ds in REGIME.learned:
        rows = pq.read_table(prepared.folder / "learn" / ds).to_pylist()
        learned = {row["user_id"] for row in rows}
        known, buyers = {user for user, _, when, *_ in EVENTS if when < request_time(ds)}, set(bought(ds))
        assert known & buyers <= learned <= known
        left_out += len(known - learned)
        for row in rows:
            weights[row["user_id"] in buyers] |= set(row["sampling_weight"])
    assert left_out > 0
    assert weights == {True: {1.0}, False: {2.0}}


def test_a_ds_that_is_there_is_not_built_again(build: Build) -> None:
    assert build.missing() == []
    (build.folder / f"built-{TEST}").unlink()
    assert build.missing() == [TEST]
    build.add(TEST)
    assert build.missing() == []
    assert Path(build.folder / "test" / TEST).is_dir()
