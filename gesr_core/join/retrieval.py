"""A stand-in retrieval for people who have none: own past items, popularity and ALS. Driver only; DataFrame -> DataFrame.

Everything comes from the events strictly before a request time, compared as microseconds since 1970, so that neither
later events nor the session's time zone can matter. Not a recommender to be proud of: it feeds the ranking.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.config import CandidatesConfig
from gesr_core.join.recommend import ItemTable, recommend
from gesr_core.names import Col
from gesr_core.schema import written_columns
from gesr_core.names import Role

DAY_US: Final = 86_400_000_000
# Ids are numbered within hash buckets, so that no single task sorts them all.
_BUCKETS: Final = 64
_BLOCK_USERS: Final = 512


@dataclass(frozen=True)
class NumberedEvents:
    """Events on dense integers, which ALS wants.

    A number depends on the id's text and its first event alone, and on earlier ones: events that come later leave the
    numbers of what was there before untouched. BIGINT and STRING ids get the same numbers.
    """

    events: DataFrame  # user_index, item_index, event_us
    users: DataFrame  # user_index, user_id, first_us
    items: DataFrame  # item_index, item_id, first_us


def instant_us(column: Column) -> Column:
    """Return a timestamp as microseconds since 1970 UTC, whatever the session's time zone."""
    return F.unix_micros(column)


def number_events(events: DataFrame) -> NumberedEvents:
    """Number users and items by first appearance; events without user, item or time are dropped."""
    known = events.select(Col.USER_ID, Col.ITEM_ID, instant_us(F.col(Col.EVENT_TS)).alias("event_us")).dropna()
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


def user_item_pairs(numbered: NumberedEvents, *, request_us: int, settings: CandidatesConfig) -> DataFrame:
    """Count each user's events with each item before the request time.

    Columns: user_index, item_index, events, recent_events (within `popular_days`), last_us.
    """
    recent = F.col("event_us") >= request_us - settings.popular_days * DAY_US
    return (
        numbered.events.where(F.col("event_us") < request_us)
        .groupBy("user_index", "item_index")
        .agg(
            F.count("*").alias("events"),
            F.count_if(recent).alias("recent_events"),
            F.max("event_us").alias("last_us"),
        )
    )


def active_users(
    pairs: DataFrame, numbered: NumberedEvents, *, request_us: int, settings: CandidatesConfig
) -> DataFrame:
    """Return the users (user_index, user_id) with an event within `active_days` before the request time."""
    since_us = request_us - settings.active_days * DAY_US
    active = pairs.groupBy("user_index").agg(F.max("last_us").alias("last_us")).where(F.col("last_us") >= since_us)
    return active.join(numbered.users, on="user_index", how="inner").select("user_index", Col.USER_ID)


def retrieve(
    pairs: DataFrame, users: DataFrame, numbered: NumberedEvents, *, request_us: int, settings: CandidatesConfig
) -> DataFrame:
    """Return (user_id, candidates) of `users`, fitted on `pairs`, as `recommend.recommend` orders and cuts them.

    Fitting ALS and fetching the item factors run Spark jobs here: the item side (ids, counts and rank x items floats)
    must fit the driver and a worker. `pairs` is read several times: persist it.
    """
    item_counts = _item_counts(pairs, numbered, request_us=request_us)
    model = _fit_als(pairs, item_counts, settings)
    items = _item_table(item_counts, model, settings)
    blocks = _blocks(pairs, users, model, request_us=request_us, settings=settings)
    item_type = numbered.items.schema[Col.ITEM_ID].dataType.simpleString()
    user_type = users.schema[Col.USER_ID].dataType.simpleString()
    columns = written_columns(Role.CANDIDATES, user=user_type, item=item_type)
    schema = ", ".join(f"{name} {columns[name]}" for name in (Col.USER_ID, Col.CANDIDATES))
    work = partial(recommend, items=items, als_items=settings.als_items, max_candidates=settings.max_candidates)
    return blocks.mapInArrow(work, schema)


def _item_counts(pairs: DataFrame, numbered: NumberedEvents, *, request_us: int) -> pa.Table:
    """Fetch item_index, item_id, events and recent_events of every item with an event before the request time."""
    counts = pairs.groupBy("item_index").agg(
        F.sum("events").alias("events"), F.sum("recent_events").alias("recent_events")
    )
    ids = numbered.items.where(F.col("first_us") < request_us).select("item_index", Col.ITEM_ID)
    return counts.join(ids, on="item_index", how="inner").toArrow().sort_by("item_index")


def _fit_als(pairs: DataFrame, item_counts: pa.Table, settings: CandidatesConfig) -> ALSModel | None:
    """Fit implicit ALS on the items with enough events; None when there are none or `als_items` is 0.

    Spark adds up the ratings of a user in the order in which blocks arrive, so the input is laid out such that each of
    ALS's blocks comes from one task, in one order.
    """
    frequent = int((item_counts["events"].to_numpy() >= settings.als_min_item_events).sum())
    if not frequent or not settings.als_items:
        return None
    enough = pairs.groupBy("item_index").agg(F.sum("events").alias("item_events"))
    enough = enough.where(F.col("item_events") >= settings.als_min_item_events).select("item_index")
    blocks = F.lit(settings.als_blocks)
    block = (F.col("user_index") % blocks) * blocks + F.col("item_index") % blocks
    ratings = (
        pairs.join(enough, on="item_index", how="left_semi")
        .select("user_index", "item_index", F.col("events").cast("float").alias("rating"))
        .repartition(block)
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


def _blocks(
    pairs: DataFrame, users: DataFrame, model: ALSModel | None, *, request_us: int, settings: CandidatesConfig
) -> DataFrame:
    """Gather users, with their own items and factors, into rows of one block each."""
    age_days = (F.lit(request_us) - F.col("last_us")) / F.lit(float(DAY_US))
    score = F.col("events") / (F.lit(1.0) + age_days / F.lit(settings.own_decay_days))
    ranked = F.struct(score.alias("score"), (-F.col("item_index")).alias("minus_index"))
    own = F.slice(F.sort_array(F.collect_list(ranked), asc=False), 1, settings.own_items) if settings.own_items else F.array()
    own = F.transform(own, lambda e: F.struct((-e["minus_index"]).alias("item_index"), e["score"].alias("score")))
    rows = (
        pairs.join(users, on="user_index", how="inner")
        .groupBy("user_index", Col.USER_ID)
        .agg(own.alias("own"))
        .join(_user_factors(model, users), on="user_index", how="left")
    )
    user = F.struct("user_index", Col.USER_ID, "own", "factors")
    block = F.floor(F.col("user_index") / F.lit(_BLOCK_USERS))
    return rows.groupBy(block.alias("block_index")).agg(F.sort_array(F.collect_list(user)).alias("block")).select("block")


def _user_factors(model: ALSModel | None, users: DataFrame) -> DataFrame:
    if model is None:
        return users.select("user_index", F.lit(None).cast("array<float>").alias("factors")).limit(0)
    return model.userFactors.select(F.col("id").alias("user_index"), F.col("features").alias("factors"))
