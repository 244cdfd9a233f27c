"""Request rows: one user's history and candidates of one `ds`, as parallel arrays. Driver only; pure.

A history stands once per request, never per candidate. What is not scored travels beside the candidates in `rejected`,
so that pairs add up wherever the row ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame, functions as F

from gesr_core.dates import request_time_us
from gesr_core.join.items import as_of
from gesr_core.join.shards import part_of, shard_of
from gesr_core.names import Col, label, user_feature
from gesr_core.schema import DUPLICATE, NO_CANDIDATES, NULL_ITEM, NULL_USER, rejected_type

_DAY_US = 86_400_000_000


def users_at(users: DataFrame, *, ds: str, features: Sequence[str]) -> DataFrame:
    """Return (user_id, user_<feature>...) as of the request time of `ds`; lists become lists of texts, without nulls.

    Vocabularies are of texts, and neither pandas nor petastorm has a null among 64-bit integers.
    """
    rows = as_of(users, Col.USER_ID, ds=ds)

    def column(name: str) -> Column:
        is_list = rows.schema[name].dataType.simpleString().startswith("array<")
        return F.array_compact(F.col(name).cast("array<string>")) if is_list else F.col(name)

    return rows.select(Col.USER_ID, *(column(name).alias(user_feature(name)) for name in features))


def request_columns(*, user_features: Sequence[str], string_items: bool) -> list[str]:
    """Columns of a serving request row, in the order in which the scorer receives them."""
    history = [Col.HISTORY_ITEM_ID, Col.HISTORY_TIME_S, Col.HISTORY_ACTION, Col.HISTORY_VALUE]
    keys = [Col.HISTORY_ITEM_KEY, Col.CANDIDATE_ITEM_KEY] if string_items else []
    return [
        Col.SHARD,
        Col.PART,
        Col.USER_ID,
        Col.REQUEST,
        *map(user_feature, user_features),
        *history,
        Col.CANDIDATE_ITEM_ID,
        *keys,
        Col.REJECTED,
        Col.CANDIDATES_IN,
    ]


def build_requests(
    candidates: DataFrame,
    histories: DataFrame,
    users: DataFrame,
    *,
    shards: int,
    ds: str,
    history_window_days: int | None,
    max_candidates_per_request: int,
    user_features: Sequence[str],
    parts: Mapping[int, int] | None = None,
) -> DataFrame:
    """Join candidates, histories and users of one `ds` into request rows.

    Args:
        candidates: (user_id, candidates ARRAY<STRUCT<item_id, ...>>) of one `ds`; several rows of a user are merged.
        histories: (user_id, history) as of the same `ds`.
        users: `users_at` of the same `ds`.
        shards: number of shards.
        ds: the day.
        history_window_days: older events are left out of the histories; None: none are.
        max_candidates_per_request: a user with more becomes several requests, numbered from 0.
        user_features: declared user features.
        parts: into how many parts the shards are cut that are (join.shards.balanced_parts); None: all are whole.

    Candidates come sorted by item id, so that a stable sort by score breaks ties by item id. A user without a history
    or a `users` row is scored with an empty history and missing features. Null ids and repeated candidates are
    rejected; a user without any candidate gets one request with none. No order of rows.
    """
    item_type = _item_type(candidates)
    per_user = candidates.groupBy(Col.USER_ID).agg(
        F.flatten(F.collect_list(F.coalesce(F.col("candidates.item_id"), _empty(item_type)))).alias("_all")
    )
    checked = _reject(per_user.withColumn("_all", F.array_sort("_all")), item_type=item_type)
    sharded = checked.withColumn(Col.SHARD, shard_of(F.col(Col.USER_ID), shards=shards))
    sharded = sharded.withColumn(Col.PART, part_of(F.col(Col.USER_ID), shard=F.col(Col.SHARD), parts=parts or {}))
    recent = _recent(histories, ds=ds, window_days=history_window_days)
    joined = sharded.join(recent, on=Col.USER_ID, how="left")
    joined = joined.join(users, on=Col.USER_ID, how="left")
    requests = _cut(joined, max_candidates_per_request)
    requests = with_item_keys(with_history_arrays(requests, item_type=item_type), string_items=item_type == "string")
    return requests.select(*request_columns(user_features=user_features, string_items=item_type == "string"))


def training_requests(
    impressions: DataFrame,
    histories: DataFrame,
    users: DataFrame,
    *,
    ds: str,
    history_window_days: int | None,
    tasks: Sequence[str],
    user_features: Sequence[str],
) -> DataFrame:
    """Join impressions, histories and users of one `ds` into labelled request rows.

    Contract: (ds, user_id, user_<feature>..., history arrays, candidate_item_id, label_<task> arrays, sampling_rate,
    sampling_weight, exposed), arrays of one request parallel and sorted by item id.
    """
    item_type = impressions.schema[Col.ITEM_ID].dataType.simpleString()
    labels = [label(task) for task in tasks]
    kinds = [*labels, Col.SAMPLING_RATE, Col.SAMPLING_WEIGHT, Col.EXPOSED]
    fields = [Col.ITEM_ID, *kinds]
    grouped = impressions.groupBy(Col.DS, Col.USER_ID).agg(F.array_sort(F.collect_list(F.struct(*fields))).alias("_i"))
    arrays = [F.col(f"_i.{name}").alias(name if name != Col.ITEM_ID else Col.CANDIDATE_ITEM_ID) for name in fields]
    recent = _recent(histories, ds=ds, window_days=history_window_days)
    joined = grouped.join(recent, on=Col.USER_ID, how="left")
    joined = joined.join(users, on=Col.USER_ID, how="left")
    wide = with_history_arrays(joined.select("*", *arrays), item_type=item_type)
    string_items = item_type == "string"
    serving = request_columns(user_features=user_features, string_items=string_items)
    of_serving = (Col.SHARD, Col.PART, Col.REQUEST, Col.REJECTED, Col.CANDIDATES_IN)
    kept = [name for name in serving if name not in of_serving]
    wide = with_item_keys(wide, string_items=string_items)
    return wide.select(Col.DS, *kept, *kinds)


def _recent(histories: DataFrame, *, ds: str, window_days: int | None) -> DataFrame:
    """Return (user_id, history) without the events from before the window, which ends at the request time of `ds`."""
    history = F.col(Col.HISTORY)
    if window_days is not None:
        start = F.timestamp_micros(F.lit(request_time_us(ds) - window_days * _DAY_US))
        history = F.filter(history, lambda event: event[Col.EVENT_TS] >= start).alias(Col.HISTORY)
    return histories.select(Col.USER_ID, history)


def with_history_arrays(df: DataFrame, *, item_type: str) -> DataFrame:
    """Turn `history` (null: empty) into parallel arrays; times become seconds since 1970 UTC."""
    history = F.col(Col.HISTORY)
    times_s = F.transform(history, lambda event: F.unix_seconds(event[Col.EVENT_TS]))
    columns = {
        Col.HISTORY_ITEM_ID: (history[Col.ITEM_ID], item_type),
        Col.HISTORY_TIME_S: (times_s, "bigint"),
        Col.HISTORY_ACTION: (history[Col.ACTION], "string"),
        Col.HISTORY_VALUE: (history[Col.VALUE], "double"),
    }
    return df.withColumns({name: F.coalesce(array, _empty(type_)) for name, (array, type_) in columns.items()})


def with_item_keys(df: DataFrame, *, string_items: bool) -> DataFrame:
    """Add 64-bit keys of STRING item ids, by which the scorer searches; BIGINT ids are their own keys."""
    if not string_items:
        return df
    pairs = ((Col.HISTORY_ITEM_KEY, Col.HISTORY_ITEM_ID), (Col.CANDIDATE_ITEM_KEY, Col.CANDIDATE_ITEM_ID))
    return df.withColumns({key: F.transform(F.col(ids), lambda item: F.xxhash64(item)) for key, ids in pairs})


def _reject(df: DataFrame, *, item_type: str) -> DataFrame:
    """Split the sorted ids `_all` into candidate_item_id and `rejected`; count what came in."""
    every = F.col("_all")
    nobody = F.col(Col.USER_ID).isNull()
    valid = F.when(nobody, _empty(item_type)).otherwise(F.array_compact(F.array_distinct(every)))
    # Lambdas over arrays are slow: they run only where something was dropped.
    intact = (F.size(every) > 0) & (F.size(valid) == F.size(every))
    rejected = F.when(intact, F.array().cast(rejected_type(item_type))).otherwise(_reasons(every, nobody, item_type))
    return df.select(
        Col.USER_ID,
        valid.alias(Col.CANDIDATE_ITEM_ID),
        rejected.alias(Col.REJECTED),
        F.size(every).cast("bigint").alias(Col.CANDIDATES_IN),
    )


def _reasons(every: Column, nobody: Column, item_type: str) -> Column:
    def reason(item: Column, place: Column) -> Column:
        repeated = (place > 0) & item.eqNullSafe(F.get(every, place - 1))
        why = F.when(nobody, NULL_USER).when(item.isNull(), NULL_ITEM).when(repeated, DUPLICATE)
        return F.struct(item.alias(Col.ITEM_ID), why.alias(Col.REASON))

    dropped = F.filter(F.transform(every, reason), lambda entry: entry[Col.REASON].isNotNull())
    nothing = F.array(F.struct(F.lit(None).cast(item_type).alias(Col.ITEM_ID), F.lit(NO_CANDIDATES).alias(Col.REASON)))
    type_ = rejected_type(item_type)
    return F.when(F.size(every) == 0, nothing.cast(type_)).otherwise(dropped.cast(type_))


def _cut(df: DataFrame, max_candidates: int) -> DataFrame:
    """One row per request; what belongs to the user as a whole (rejected, counts) stays with request 0."""
    ids = F.col(Col.CANDIDATE_ITEM_ID)
    last = F.greatest(F.ceil(F.size(ids) / F.lit(float(max_candidates))).cast("int") - 1, F.lit(0))
    rows = df.withColumn(Col.REQUEST, F.explode(F.sequence(F.lit(0), last)))
    first = F.col(Col.REQUEST) == 0
    whole = last == 0
    part = F.slice(ids, F.col(Col.REQUEST) * max_candidates + 1, F.lit(max_candidates))
    return rows.withColumns(
        {
            Col.CANDIDATE_ITEM_ID: F.when(whole, ids).otherwise(part),
            Col.REJECTED: F.when(first, F.col(Col.REJECTED)).otherwise(F.slice(Col.REJECTED, 1, 0)),
            Col.CANDIDATES_IN: F.when(first, F.col(Col.CANDIDATES_IN)).otherwise(F.lit(0).cast("bigint")),
        }
    )


def _item_type(candidates: DataFrame) -> str:
    element = candidates.schema[Col.CANDIDATES].dataType.elementType  # type: ignore[attr-defined]
    return str(element[Col.ITEM_ID].dataType.simpleString())


def _empty(type_: str) -> Column:
    return F.array().cast(f"array<{type_}>")
