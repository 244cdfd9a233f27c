"""Segments that a configuration declares: which users, and which bands of popularity. Driver only; pure.

A user's segments are numbered, in the order of their names; a pair's have a bit each (`pairs.Joined`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.errors import InputError
from gesr_core.names import Col, user_feature

UNKNOWN: Final = "unknown"
MOST_VALUES: Final = 50


@dataclass(frozen=True)
class UserSegments:
    """The names of all segments of users, and (user_id, segments): the numbers of a user's; `rows` is of some users."""

    names: tuple[str, ...]
    rows: DataFrame | None


def user_segments(
    users: DataFrame,
    *,
    events: DataFrame | None,
    cut_points: Sequence[int],
    attributes: DataFrame | None,
    columns: Sequence[str],
) -> UserSegments:
    """Put users into segments by the length of their history and by their attributes.

    Args:
        users: (user_id), each once.
        events: (user_id, events): how many events a user has; None where `cut_points` are empty.
        cut_points: where a new band of history lengths begins, ascending.
        attributes: (user_id, user_<column>...); a user who is not there, or has a null, is `unknown`.
        columns: names of the attributes.

    Raises:
        InputError: an attribute has too many values to be segments.
    """
    names: list[str] = []
    numbers: list[Column] = []
    rows = users
    if cut_points and events is not None:
        rows = rows.join(events, on=Col.USER_ID, how="left")
        bands = length_bands(cut_points)
        numbers.append(_band_number(F.coalesce("events", F.lit(0)), cut_points, first=len(names)))
        names += [f"history_length:{band}" for band in bands]
    if columns and attributes is not None:
        rows = rows.join(attributes, on=Col.USER_ID, how="left")
        for column, values in _values(attributes, columns).items():
            known = F.coalesce(F.col(user_feature(column)).cast("string"), F.lit(UNKNOWN))
            number = F.array_position(F.array(*map(F.lit, values)), known)
            numbers.append((number - 1 + len(names)).cast("int"))
            names += [f"user.{column}:{value}" for value in values]
    if not names:
        return UserSegments((), None)
    return UserSegments(tuple(names), rows.select(Col.USER_ID, F.array(*numbers).alias("segments")))


def length_bands(cut_points: Sequence[int]) -> list[str]:
    """Return the names of the bands that cut points part: 1, 10 give `0`, `1-9`, `10+`."""
    starts = [0, *cut_points]
    between = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(starts)]
    return [*between, f"{starts[-1]}+"]


def band_thresholds(items_by_value: Mapping[float, int], shares: Sequence[float]) -> list[float]:
    """Return the least popularity of each band, such that the items from there up hold at least that share of it all.

    Items of one popularity are of one band. An empty catalogue has bands that nothing is in.

    Args:
        items_by_value: how many items have a popularity.
        shares: cumulative shares of the sum of all popularities, ascending.
    """
    total, seen = sum(value * items for value, items in items_by_value.items()), 0.0
    falling = sorted(items_by_value.items(), reverse=True)
    thresholds: list[float] = []
    for value, items in falling:
        seen += value * items
        while len(thresholds) < len(shares) and seen >= shares[len(thresholds)] * total:
            thresholds.append(value)
    return thresholds + [float("inf")] * (len(shares) - len(thresholds))


def _band_number(events: Column, cut_points: Sequence[int], *, first: int) -> Column:
    number = F.lit(first)
    for place, start in enumerate(cut_points, start=1):
        number = F.when(events >= start, F.lit(first + place)).otherwise(number)
    return number


def _values(attributes: DataFrame, columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each attribute, and UNKNOWN; one Spark job per attribute."""
    found: dict[str, list[str]] = {}
    for column in columns:
        texts = attributes.select(F.col(user_feature(column)).cast("string").alias("value")).distinct()
        # The limit first: a column of ids must not come to the driver.
        values = {row["value"] for row in texts.limit(MOST_VALUES + 2).collect()} - {None}
        if len(values) > MOST_VALUES:
            raise InputError(
                f"evaluation.segments.user names {column!r}, which has more than {MOST_VALUES} values in users, each "
                "of which would be a segment: name a coarser column"
            )
        found[column] = sorted({*values, UNKNOWN})
    return found
