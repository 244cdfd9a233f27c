"""Segments of users and bands of popularity, by hand."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from gesr_core.errors import InputError
from gesr_core.metrics.segments import MOST_VALUES, band_thresholds, length_bands, user_segments


def test_cut_points_part_history_lengths() -> None:
    assert length_bands([1, 10, 30]) == ["0", "1-9", "10-29", "30+"]
    assert length_bands([1]) == ["0", "1+"]
    assert length_bands([5, 6]) == ["0-4", "5", "6+"]


def test_a_band_holds_its_share_of_all_popularity_and_no_item_is_parted_from_its_equals() -> None:
    # 50 + 2 x 20 + 10 x 1 = 100: the first item has half; the two of 20 are of one band; ten items are the tail.
    counts = {50.0: 1, 20.0: 2, 1.0: 10}
    assert band_thresholds(counts, [0.5, 0.9]) == [50.0, 20.0]
    assert band_thresholds(counts, [0.6]) == [20.0]
    assert band_thresholds({10.0: 1}, [0.5, 0.9]) == [10.0, 10.0]
    assert band_thresholds({}, [0.5]) == [float("inf")]


@pytest.mark.spark
def test_users_are_put_into_segments_by_events_and_attributes(spark: SparkSession) -> None:
    users = spark.createDataFrame([(n,) for n in (1, 2, 3, 4)], "user_id bigint")
    events = spark.createDataFrame([(1, 9), (2, 10), (4, 31)], "user_id bigint, events bigint")
    attributes = spark.createDataFrame([(1, "A"), (2, None), (3, "B")], "user_id bigint, user_age string")
    found = user_segments(users, events=events, cut_points=[1, 10], attributes=attributes, columns=["age"])
    assert found.rows is not None
    named = {r["user_id"]: {found.names[number] for number in r["segments"]} for r in found.rows.collect()}
    assert named == {
        1: {"history_length:1-9", "user.age:A"},
        2: {"history_length:10+", "user.age:unknown"},
        3: {"history_length:0", "user.age:B"},
        # Neither table needs to know a user.
        4: {"history_length:10+", "user.age:unknown"},
    }
    none = user_segments(users, events=None, cut_points=[], attributes=None, columns=[])
    assert (none.names, none.rows) == ((), None)


@pytest.mark.spark
def test_a_column_of_ids_is_no_segment(spark: SparkSession) -> None:
    attributes = spark.createDataFrame([(n, n) for n in range(MOST_VALUES + 1)], "user_id bigint, user_pin int")
    with pytest.raises(InputError, match=r"names 'pin', which has more than 50 values in users.*a coarser column"):
        user_segments(attributes, events=None, cut_points=[], attributes=attributes, columns=["pin"])
