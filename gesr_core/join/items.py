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
    statistics = known.groupBy(Col.ITEM_ID).agg(*_statistics(features.item_statistics, ds=ds))
    joined = catalogue.join(statistics, on=Col.ITEM_ID, how="left")
    counts = [s.name for s in features.item_statistics if s.kind in ("users", "events")]
    return joined.fillna(0.0, subset=counts).select(Col.ITEM_ID, *declared, *names)


def _statistics(declared: Sequence[ItemStatistic], *, ds: str) -> list[Column]:
    return [_statistic(statistic, request_us=request_time_us(ds)).alias(statistic.name) for statistic in declared]


def _statistic(statistic: ItemStatistic, *, request_us: int) -> Column:
    event_us = F.unix_micros(F.col(Col.EVENT_TS))
    start_us = request_us - statistic.window_days * _DAY_US if statistic.window_days else None
    within = F.lit(True) if start_us is None else event_us >= F.lit(start_us)
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
