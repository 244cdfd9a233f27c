"""Item features as of a request time: declared columns and statistics of earlier events. Driver only; pure."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.config import FeaturesConfig, ItemStatistic
from gesr_core.dates import request_time_us
from gesr_core.names import Col

_DAY_US = 86_400_000_000


def as_of(df: DataFrame, key: str, *, ds: str) -> DataFrame:
    """Keep, per key, the newest row whose `valid_from` lies strictly before the request time of `ds`.

    A table without `valid_from` is static and passes unchanged. Two rows of one key and `valid_from` are a defect of
    the input that `io.tables.require_unique` refuses; here the result would depend on their order.
    """
    if Col.VALID_FROM not in df.columns:
        return df
    newest_first = Window.partitionBy(key).orderBy(F.col(Col.VALID_FROM).desc())
    known = df.where(before(Col.VALID_FROM, ds))
    return known.withColumn("_age", F.row_number().over(newest_first)).where("_age = 1").drop("_age", Col.VALID_FROM)


def before(instant: str, ds: str) -> Column:
    """True where a TIMESTAMP column lies strictly before the request time of `ds`, in whatever session time zone."""
    # A literal made from microseconds is an instant: no time zone enters, and Delta can still skip files by it.
    return F.col(instant) < F.timestamp_micros(F.lit(request_time_us(ds)))


def items_at(items: DataFrame, events: DataFrame, *, ds: str, features: FeaturesConfig) -> DataFrame:
    """Return one row per item of the catalogue as of `ds`: item_id, the declared features, the declared statistics.

    Statistics are doubles over the events strictly before the request time; null (for counts: 0) where an item has
    none. Contract: (item_id, <features.item names>, <features.item_statistics names>).
    """
    declared = [feature.name for feature in features.item]
    catalogue = as_of(items, Col.ITEM_ID, ds=ds).select(Col.ITEM_ID, *declared)
    names = [statistic.name for statistic in features.item_statistics]
    if not names:
        return catalogue
    known = events.where(before(Col.EVENT_TS, ds)).where(F.col(Col.ITEM_ID).isNotNull())
    repeats = [s for s in features.item_statistics if s.kind == "repeat_share"]
    joined = catalogue.join(_per_item(known, features.item_statistics, ds=ds), on=Col.ITEM_ID, how="left")
    if repeats:
        joined = joined.join(_repeat_shares(known, repeats, ds=ds), on=Col.ITEM_ID, how="left")
    counts = [s.name for s in features.item_statistics if s.kind in ("users", "events")]
    return joined.fillna(0.0, subset=counts).select(Col.ITEM_ID, *declared, *names)


def _per_item(known: DataFrame, declared: Sequence[ItemStatistic], *, ds: str) -> DataFrame:
    """Return (item_id, statistics...) of those that one pass over an item's events gives."""
    columns = [
        _statistic(statistic, request_us=request_time_us(ds)).alias(statistic.name)
        for statistic in declared
        if statistic.kind != "repeat_share"
    ]
    return known.groupBy(Col.ITEM_ID).agg(*columns) if columns else known.select(Col.ITEM_ID).distinct()


def _repeat_shares(known: DataFrame, declared: Sequence[ItemStatistic], *, ds: str) -> DataFrame:
    """Return (item_id, shares...): of an item's users in the window, the share with its events on at least two dates.

    Dates are UTC; null where an item has no user in the window. The statistic is ours.
    """
    date = F.floor(F.unix_micros(F.col(Col.EVENT_TS)) / F.lit(_DAY_US))
    spans, shares = [], []
    for statistic in declared:
        within = _within(statistic, request_us=request_time_us(ds))
        spans.append((F.max(F.when(within, date)) - F.min(F.when(within, date))).alias(statistic.name))
        users, repeaters = F.count(statistic.name), F.count(F.when(F.col(statistic.name) > 0, F.lit(1)))
        shares.append((repeaters.cast("double") / F.nullif(users, F.lit(0)).cast("double")).alias(statistic.name))
    of_users = known.where(F.col(Col.USER_ID).isNotNull()).groupBy(Col.ITEM_ID, Col.USER_ID).agg(*spans)
    return of_users.groupBy(Col.ITEM_ID).agg(*shares)


def _within(statistic: ItemStatistic, *, request_us: int) -> Column:
    if statistic.window_days is None:
        return F.lit(True)
    return F.unix_micros(F.col(Col.EVENT_TS)) >= F.lit(request_us - statistic.window_days * _DAY_US)


def _statistic(statistic: ItemStatistic, *, request_us: int) -> Column:
    event_us, within = F.unix_micros(F.col(Col.EVENT_TS)), _within(statistic, request_us=request_us)
    if statistic.kind == "users":
        return F.count_distinct(F.when(within, F.col(Col.USER_ID))).cast("double")
    if statistic.kind == "events":
        return F.count(F.when(within, F.lit(1))).cast("double")
    if statistic.kind == "mean_value":
        # Sums of decimals are exact, so the result does not depend on how the shuffle ordered the rows.
        value = F.when(within, F.expr(f"try_cast({Col.VALUE} AS DECIMAL(28, 6))"))
        return F.sum(value).cast("double") / F.nullif(F.count(value), F.lit(0)).cast("double")
    edge = F.min if statistic.kind == "days_since_first" else F.max
    return (F.lit(request_us) - edge(F.when(within, event_us))).cast("double") / F.lit(float(_DAY_US))
