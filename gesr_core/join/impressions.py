"""Impressions for training: candidates of past dates with their labels, thinned out. Driver only; pure.

Every draw is a hash of a seed and of ids, never a random number: a second run, and any other layout of the data, draws
the same rows. Labelled candidates always stay; of the others, and of the items outside the candidates, a share does.
`sampling_rate` is the probability with which a row entered, given that it has no label. Rows with labels bear their
group's rate too, because training shifts every logit of a group by it: a model fitted on thinned negatives has the
logit of the truth minus ln(sampling_rate) (prior correction, King and Zeng 2001; per group: ours). Whole users without
a label are thinned out apart, since no shift can correct a draw that depends on the label of another pair: one that
stays stands for the others by its `sampling_weight` (Horvitz and Thompson 1952).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, Window, functions as F

from gesr_core.config import ImpressionsConfig, LabelsConfig, Task
from gesr_core.join.labels import positives
from gesr_core.join.request_times import with_request_times
from gesr_core.names import Col, Role, label
from gesr_core.schema import written_columns

# Draws beyond twice the wanted number, for those that hit a candidate or an item twice.
_SPARE_DRAWS: Final = 8
_REQUEST: Final = [Col.DS, Col.USER_ID]


def uniform(*parts: Column) -> Column:
    """Return a number in [0, 1) that is a function of `parts` alone, evenly spread over them (53 bits of xxHash64)."""
    return F.shiftrightunsigned(F.xxhash64(*parts), 11).cast("double") * F.lit(2.0**-53)


def sample_users(users: DataFrame, labelled: DataFrame, *, settings: ImpressionsConfig) -> DataFrame:
    """Keep `user_rate` of the rows (ds, user_id), and of those without a label `unlabelled_user_rate` of that.

    Which users those are differs from date to date. Adds `sampling_weight`: 1 for a user with a label, for another one
    1 / `unlabelled_user_rate`.

    Args:
        users: (ds, user_id), each once.
        labelled: (ds, user_id) of those with a label, repeated or not; others than `users` do not matter.
        settings: rates and seed.
    """
    draw, rate = uniform(*_key("user", settings)), settings.unlabelled_user_rate
    drawn = users.where(draw < settings.user_rate)
    if rate == 1:
        return drawn.withColumn(Col.SAMPLING_WEIGHT, F.lit(1.0))
    known = labelled.select(*_REQUEST).distinct().withColumn("labelled", F.lit(True))
    marked = drawn.join(known, on=_REQUEST, how="left")
    has_label = F.coalesce(F.col("labelled"), F.lit(False))
    kept = marked.where(has_label | (draw < settings.user_rate * rate))
    return kept.withColumn(Col.SAMPLING_WEIGHT, F.when(has_label, 1.0).otherwise(1 / rate)).drop("labelled")


def build_impressions(
    candidates: DataFrame,
    events: DataFrame,
    *,
    users: DataFrame,
    items: DataFrame,
    dates: Sequence[str],
    labels: LabelsConfig,
    settings: ImpressionsConfig,
) -> DataFrame:
    """Return the impressions of past dates: exposed ones from the candidates, unexposed ones from the other items.

    Exposed: a candidate with a label stays, another one with probability `negative_rate`, which is the group's
    `sampling_rate`. Unexposed: `unexposed_items` per user, drawn evenly without repetition from the catalogue (items
    with an event before the request time) less the user's candidates and labelled items, all labels 0; their
    `sampling_rate` is that number / (items of the catalogue - candidates). Fewer are drawn only where the candidates
    are most of the catalogue. A labelled item that was not retrieved was not shown: it is no impression. Users whose
    candidates got no label stay in.

    Args:
        candidates: (ds, user_id, candidates), one row per request.
        events: where labels come from.
        users: `sample_users`: those of the candidates, given apart so that drawing items need not wait for a retrieval.
        items: (item_id, first_us), the time of each item's first event.
        dates: those of the candidates.
        labels: the declared tasks and their window.
        settings: rates and seed.
    """
    tasks = labels.tasks
    labelled = positives(events, dates=dates, window_days=labels.window_days, tasks=tasks, users=users)
    catalogue = with_request_times(items, dates, when=F.col("first_us") < F.col("request_us"))
    sizes = catalogue.groupBy(Col.DS, "request_us").agg(F.count("*").alias("catalogue_items"))
    requests = (
        candidates.select(*_REQUEST, F.col(f"{Col.CANDIDATES}.{Col.ITEM_ID}").alias("ids"))
        .join(users.select(*_REQUEST, Col.SAMPLING_WEIGHT), on=_REQUEST, how="inner")
        .join(F.broadcast(sizes), on=Col.DS, how="inner")
        .join(_labelled_items(labelled, tasks), on=_REQUEST, how="left")
    )
    taken = F.concat("ids", *(_array(label(task.name)) for task in tasks))
    # Keeps the order of drawing.
    outside = F.array_except(_array("drawn"), taken)
    unexposed = F.filter(outside, lambda _, place: place < settings.unexposed_items)
    if settings.unexposed_items:
        drawn = _draws(users.join(F.broadcast(sizes), on=Col.DS, how="inner"), catalogue, settings)
        requests = requests.join(drawn, on=_REQUEST, how="left")
    else:
        requests = requests.withColumn("drawn", F.array().cast(requests.schema["ids"].dataType))
    pairs = requests.select(
        *_REQUEST,
        Col.SAMPLING_WEIGHT,
        *(label(task.name) for task in tasks),
        F.size("ids").alias("candidates"),
        "catalogue_items",
        "request_us",
        F.posexplode(F.concat("ids", unexposed)).alias("place", Col.ITEM_ID),
    )
    return _contract(pairs.where(_is_kept(tasks, settings)), tasks=tasks, settings=settings)


def _is_kept(tasks: Sequence[Task], settings: ImpressionsConfig) -> Column:
    kept = ~_exposed()
    for task in tasks:
        kept |= _has_label(task)
    return kept | (uniform(*_key("negative", settings), _text(Col.ITEM_ID)) < settings.negative_rate)


def _contract(kept: DataFrame, *, tasks: Sequence[Task], settings: ImpressionsConfig) -> DataFrame:
    outside = F.greatest(F.col("catalogue_items") - F.col("candidates"), F.lit(1))
    unexposed_rate = F.least(F.lit(settings.unexposed_items) / outside, F.lit(1.0))
    columns = {
        **{name: F.col(name) for name in (Col.DS, Col.USER_ID, Col.ITEM_ID)},
        Col.SHOWN_TS: F.timestamp_micros("request_us"),
        Col.SAMPLING_RATE: F.when(_exposed(), settings.negative_rate).otherwise(unexposed_rate),
        Col.SAMPLING_WEIGHT: F.col(Col.SAMPLING_WEIGHT),
        Col.EXPOSED: _exposed(),
        **{label(task.name): _has_label(task) for task in tasks},
    }
    user, item = (kept.schema[name].dataType.simpleString() for name in (Col.USER_ID, Col.ITEM_ID))
    contract = written_columns(Role.IMPRESSIONS, user=user, item=item, tasks=[task.name for task in tasks])
    return kept.select(*(columns[name].cast(type_).alias(name) for name, type_ in contract.items()))


def _exposed() -> Column:
    return F.col("place") < F.col("candidates")


def _has_label(task: Task) -> Column:
    """True where the pair's item is among the user's labelled items of the task; null arrays hold none."""
    return F.coalesce(F.array_contains(label(task.name), F.col(Col.ITEM_ID)), F.lit(False))


def _labelled_items(labelled: DataFrame, tasks: Sequence[Task]) -> DataFrame:
    """Gather each request's labelled items, an array per task: they are few, so that the many pairs need no join."""
    columns = [label(task.name) for task in tasks]
    items = [F.collect_list(F.when(F.col(name) == 1, F.col(Col.ITEM_ID))).alias(name) for name in columns]
    return labelled.groupBy(*_REQUEST).agg(*items)


def _draws(requests: DataFrame, catalogue: DataFrame, settings: ImpressionsConfig) -> DataFrame:
    """Draw items of the catalogue per request, evenly, each once: (ds, user_id, drawn), in the order of drawing."""
    in_order = Window.partitionBy(Col.DS).orderBy(_text(Col.ITEM_ID))
    placed = catalogue.select(Col.DS, Col.ITEM_ID, (F.row_number().over(in_order) - 1).cast("bigint").alias("place"))
    draws = F.explode(F.sequence(F.lit(1), F.lit(2 * settings.unexposed_items + _SPARE_DRAWS))).alias("draw")
    place = F.pmod(F.xxhash64(*_key("unexposed", settings), "draw"), F.col("catalogue_items")).alias("place")
    drawn = requests.select(*_REQUEST, "catalogue_items", draws).select(*_REQUEST, "draw", place)
    by_draw = F.sort_array(F.collect_list(F.struct("draw", Col.ITEM_ID)))
    found = drawn.join(placed, on=[Col.DS, "place"], how="inner").groupBy(*_REQUEST)
    return found.agg(F.array_distinct(by_draw[Col.ITEM_ID]).alias("drawn"))


def _key(purpose: str, settings: ImpressionsConfig) -> tuple[Column, ...]:
    """What a request's draws of one kind depend on."""
    return F.lit(purpose), F.lit(settings.seed), F.col(Col.DS), _text(Col.USER_ID)


def _text(column: str) -> Column:
    # BIGINT and STRING ids draw the same.
    return F.col(column).cast("string")


def _array(column: str) -> Column:
    return F.coalesce(F.col(column), F.array())
