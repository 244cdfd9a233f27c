"""A stand-in retrieval for people who have none: own past items, popularity and ALS. Driver only.

Everything of a date comes from the events strictly before its request time, compared as microseconds since 1970, so
that neither later events nor the session's time zone can matter. All dates go through one plan; only ALS is fitted for
each. Not a recommender to be proud of: it feeds the ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.config import CandidatesConfig
from gesr_core.join.recommend import ItemTable, recommend
from gesr_core.join.request_times import DAY_US, with_request_times
from gesr_core.names import Col, Role
from gesr_core.schema import written_columns

# Ids are numbered within hash buckets, so that no single task sorts them all.
_BUCKETS: Final = 64
_BLOCK_USERS: Final = 512


@dataclass(frozen=True)
class NumberedEvents:
    """Events on small integers, which ALS wants.

    A number depends on the id's text and its first event alone, and on earlier ones: events that come later leave the
    numbers of what was there before untouched. BIGINT and STRING ids get the same numbers.
    """

    events: DataFrame  # user_index, item_index, event_us
    users: DataFrame  # user_index, user_id, first_us
    items: DataFrame  # item_index, item_id, first_us


@dataclass(frozen=True)
class Retrieval:
    """What is known at each date, for `retrieve`: the item side on the driver, the rest in Spark."""

    numbered: NumberedEvents
    pairs: DataFrame  # see user_item_pairs
    users: DataFrame  # the active ones: ds, user_index, user_id
    user_factors: DataFrame  # ds, user_index, factors
    items: Mapping[str, ItemTable]


def fit_retrieval(
    events: DataFrame,
    *,
    dates: Sequence[str],
    settings: CandidatesConfig,
    cache: Callable[[DataFrame], DataFrame] = lambda df: df,
) -> Retrieval:
    """Learn what `retrieve` needs for each date from the events before its request time.

    Runs Spark jobs. The item side of all dates (ids and, per item, `als_rank` floats) must fit the driver and a worker.

    Args:
        events: as their contract says.
        dates: the dates.
        settings: the retrieval's.
        cache: called with each DataFrame that is read several times, such as one that persists it.
    """
    numbered = number_events(events)
    numbered = NumberedEvents(cache(numbered.events), cache(numbered.users), cache(numbered.items))
    pairs = cache(user_item_pairs(numbered, dates=dates, settings=settings))
    users = cache(active_users(pairs, numbered, settings=settings))
    items, user_factors = _fit(pairs, numbered, dates=dates, settings=settings)
    return Retrieval(numbered, pairs, users, user_factors, items)


def retrieve(retrieval: Retrieval, users: DataFrame, *, settings: CandidatesConfig) -> DataFrame:
    """Return (ds, user_id, candidates) of some of the active users, ordered and cut as `recommend.recommend` does."""
    user = users.schema[Col.USER_ID].dataType.simpleString()
    item = retrieval.numbered.items.schema[Col.ITEM_ID].dataType.simpleString()
    columns = written_columns(Role.CANDIDATES, user=user, item=item)
    work = partial(
        recommend, items=retrieval.items, als_items=settings.als_items, max_candidates=settings.max_candidates
    )
    blocks = _blocks(retrieval.pairs, users, retrieval.user_factors, settings=settings)
    return blocks.mapInArrow(work, ", ".join(f"{name} {type_}" for name, type_ in columns.items()))


def number_events(events: DataFrame) -> NumberedEvents:
    """Number users and items by first appearance; events without user, item or time are dropped."""
    event_us = F.unix_micros(Col.EVENT_TS).alias("event_us")
    known = events.select(Col.USER_ID, Col.ITEM_ID, event_us).dropna()
    users = _numbered(known, Col.USER_ID, "user_index")
    items = _numbered(known, Col.ITEM_ID, "item_index")
    numbered = known.join(users, on=Col.USER_ID, how="inner").join(items, on=Col.ITEM_ID, how="inner")
    return NumberedEvents(numbered.select("user_index", "item_index", "event_us"), users, items)


def _numbered(known: DataFrame, id_column: str, index: str) -> DataFrame:
    text = F.col(id_column).cast("string")
    bucket = F.pmod(F.xxhash64(text), F.lit(_BUCKETS))
    by_appearance = Window.partitionBy(bucket).orderBy("first_us", text)
    number = (F.row_number().over(by_appearance) - 1) * _BUCKETS + bucket
    first = known.groupBy(id_column).agg(F.min("event_us").alias("first_us"))
    return first.select(number.cast("int").alias(index), id_column, "first_us")


def user_item_pairs(numbered: NumberedEvents, *, dates: Sequence[str], settings: CandidatesConfig) -> DataFrame:
    """Sum up each user's events with each item before the request time of each date.

    Columns: ds, user_index, item_index, events, recent_events (within `popular_days`), age_us (from the last event to
    the request time).
    """
    past = with_request_times(numbered.events, dates, when=F.col("event_us") < F.col("request_us"))
    age_us = F.col("request_us") - F.col("event_us")
    return past.groupBy(Col.DS, "user_index", "item_index").agg(
        F.count("*").alias("events"),
        F.count_if(age_us <= settings.popular_days * DAY_US).alias("recent_events"),
        F.min(age_us).alias("age_us"),
    )


def active_users(pairs: DataFrame, numbered: NumberedEvents, *, settings: CandidatesConfig) -> DataFrame:
    """Return the users (ds, user_index, user_id) with an event within `active_days` before the request time."""
    youngest = pairs.groupBy(Col.DS, "user_index").agg(F.min("age_us").alias("age_us"))
    active = youngest.where(F.col("age_us") <= settings.active_days * DAY_US)
    return active.join(numbered.users, on="user_index", how="inner").select(Col.DS, "user_index", Col.USER_ID)


def _fit(
    pairs: DataFrame, numbered: NumberedEvents, *, dates: Sequence[str], settings: CandidatesConfig
) -> tuple[dict[str, ItemTable], DataFrame]:
    """Fit each date on its own pairs; return the item side by date, and (ds, user_index, factors).

    Fits run side by side, as many as there are task slots: with one block each, a fit keeps no more than one busy.
    """
    counts = _item_counts(pairs, numbered)

    def fit(ds: str) -> tuple[ItemTable, DataFrame | None]:
        of_date = counts.filter(pc.field(Col.DS) == ds)
        model = _fit_als(pairs.where(F.col(Col.DS) == ds), of_date, settings)
        items = _item_table(of_date, model, settings)
        return items, None if model is None else model.userFactors.select(F.lit(ds).alias(Col.DS), "id", "features")

    with ThreadPoolExecutor(pairs.sparkSession.sparkContext.defaultParallelism) as threads:
        fitted = list(threads.map(fit, dates))
    none = pairs.select(Col.DS, "user_index", F.lit(None).cast("array<float>").alias("factors")).limit(0)
    factors = [none, *(users for _, users in fitted if users is not None)]
    return {ds: items for ds, (items, _) in zip(dates, fitted, strict=True)}, reduce(DataFrame.union, factors)


def _item_counts(pairs: DataFrame, numbered: NumberedEvents) -> pa.Table:
    """Fetch ds, item_index, item_id, events and recent_events of every item with an event before the request time."""
    counts = pairs.groupBy(Col.DS, "item_index").agg(
        F.sum("events").alias("events"), F.sum("recent_events").alias("recent_events")
    )
    ids = numbered.items.select("item_index", Col.ITEM_ID)
    return counts.join(ids, on="item_index", how="inner").toArrow().sort_by("item_index")


def _fit_als(pairs: DataFrame, item_counts: pa.Table, settings: CandidatesConfig) -> ALSModel | None:
    """Fit implicit ALS on the items with enough events; None when there are none or `als_items` is 0.

    Spark adds up the ratings of a user in the order in which blocks arrive, so the input is laid out such that each of
    ALS's blocks comes from one task, in one order.
    """
    frequent = item_counts.filter(pc.field("events") >= settings.als_min_item_events).select(["item_index"])
    if not frequent.num_rows or not settings.als_items:
        return None
    blocks = F.lit(settings.als_blocks)
    block = (F.col("user_index") % blocks) * blocks + F.col("item_index") % blocks
    ratings = (
        pairs.join(F.broadcast(pairs.sparkSession.createDataFrame(frequent)), on="item_index", how="left_semi")
        .select("user_index", "item_index", F.col("events").cast("float").alias("rating"))
        .repartition(settings.als_blocks**2, block)
        .sortWithinPartitions("user_index", "item_index")
    )
    return ALS(
        rank=settings.als_rank,
        maxIter=settings.als_iterations,
        regParam=settings.als_regularization,
        alpha=settings.als_alpha,
        implicitPrefs=True,
        numUserBlocks=settings.als_blocks,
        numItemBlocks=settings.als_blocks,
        userCol="user_index",
        itemCol="item_index",
        ratingCol="rating",
        seed=settings.seed,
    ).fit(ratings)


def _item_table(item_counts: pa.Table, model: ALSModel | None, settings: CandidatesConfig) -> ItemTable:
    index = item_counts["item_index"].to_numpy()
    recent = item_counts["recent_events"].to_numpy()
    # Descending count, ties by item index; what nobody touched lately is not popular.
    popular = np.argsort(-recent, kind="stable")[: settings.popular_items]
    popular = popular[recent[popular] > 0]
    factor_index, factors_AD = _factors(model, settings.als_rank)
    return ItemTable(
        ids=_by_index(item_counts),
        popular_index=index[popular].astype(np.int32),
        popular_score=recent[popular].astype(np.float64),
        als_index_A=factor_index,
        als_factors_AD=factors_AD,
    )


def _factors(model: ALSModel | None, rank: int) -> tuple[np.ndarray, np.ndarray]:
    if model is None:
        return np.zeros(0, dtype=np.int32), np.zeros((0, rank), dtype=np.float32)
    table = model.itemFactors.toArrow().sort_by("id").combine_chunks()
    values = table["features"].combine_chunks().flatten().to_numpy()
    return table["id"].to_numpy(), values.reshape(table.num_rows, rank).astype(np.float32)


def _by_index(item_counts: pa.Table) -> pa.Array:
    """Lay the ids out by item index; indices without an item before the request time hold null."""
    index = item_counts["item_index"].to_numpy()
    place = np.zeros(int(index.max(initial=-1)) + 1, dtype=np.int64)
    place[index] = np.arange(len(index))
    return item_counts[Col.ITEM_ID].combine_chunks().take(pa.array(place))


def _blocks(pairs: DataFrame, users: DataFrame, user_factors: DataFrame, *, settings: CandidatesConfig) -> DataFrame:
    """Gather users, with their own items and factors, into rows (ds, block) of one block of users each."""
    rows = (
        pairs.join(users, on=[Col.DS, "user_index"], how="inner")
        .groupBy(Col.DS, "user_index", Col.USER_ID)
        .agg(_own_items(settings).alias("own"))
        .join(user_factors, on=[Col.DS, "user_index"], how="left")
    )
    user = F.struct("user_index", Col.USER_ID, "own", "factors")
    block_index = F.floor(F.col("user_index") / F.lit(_BLOCK_USERS)).alias("block_index")
    blocks = rows.groupBy(Col.DS, block_index).agg(F.sort_array(F.collect_list(user)).alias("block"))
    return blocks.select(Col.DS, "block")


def _own_items(settings: CandidatesConfig) -> Column:
    """Aggregate a user's pairs to the best `own_items` (item_index, score): the frequent and recent ones first."""
    age_days = F.col("age_us") / F.lit(float(DAY_US))
    score = F.col("events") / (F.lit(1.0) + age_days / F.lit(settings.own_decay_days))
    # Ties by item index, ascending, under a descending sort.
    ranked = F.struct(score.alias("score"), (-F.col("item_index")).alias("minus_index"))
    best = F.sort_array(F.collect_list(ranked), asc=False)
    kept = F.filter(best, lambda _, place: place < settings.own_items)
    return F.transform(
        kept, lambda own: F.struct((-own["minus_index"]).alias("item_index"), own["score"].alias("score"))
    )
