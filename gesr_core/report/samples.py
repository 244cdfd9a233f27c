"""Choose some users of a publication, and bring what there is to say of them to the driver. Driver only.

Two steps, because the second reads versions that may be gone: `choose_users` from what is published and bought, then
`what_was_read` from the histories, candidates and users that the run read.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pyspark.sql import DataFrame, Row, functions as F

from gesr_core.names import Col, logit, user_feature
from gesr_core.report.facts import Event, Purchase, Ranked, SampleUser

USERS: Final = 10
# Of each user the page shows so many of the best K, and of the newest events.
PLACES: Final = 20
EVENTS: Final = 20
_SALT: Final = "report"
_BOUGHT, _HITS, _PUBLISHED, _WANTED, _SIZE = "bought", "hits", "published", "wanted", "size"


def choose_users(scores: DataFrame, truth: DataFrame, *, users: int = USERS) -> list[Row]:
    """Return (user_id, ranked, hits, published, bought) of some users: by a hash, those who bought something first.

    `ranked` are the first places, `hits` the published pairs that were bought, `published` counts all of them.

    Args:
        scores: the rows of one publication.
        truth: (user_id, item_id), what was bought.
        users: how many.
    """
    bought = truth.groupBy(Col.USER_ID).agg(F.sort_array(F.collect_set(Col.ITEM_ID)).alias(_BOUGHT))
    joined = scores.select(Col.USER_ID, Col.RANKED).join(bought, on=Col.USER_ID, how="left")
    chance = F.xxhash64(F.lit(_SALT), Col.USER_ID)
    chosen = joined.orderBy(F.col(_BOUGHT).isNull(), chance, Col.USER_ID).limit(users)
    was_bought = F.filter(Col.RANKED, lambda pair: F.array_contains(_BOUGHT, pair[Col.ITEM_ID]))
    return chosen.select(
        Col.USER_ID,
        F.slice(Col.RANKED, 1, PLACES).alias(Col.RANKED),
        F.when(F.col(_BOUGHT).isNotNull(), was_bought).alias(_HITS),
        F.size(Col.RANKED).alias(_PUBLISHED),
        _BOUGHT,
    ).collect()


def what_was_read(
    chosen: Sequence[Row], *, histories: DataFrame, candidates: DataFrame, users: DataFrame
) -> dict[Any, dict[str, Any]]:
    """Return by user id what the run read: `history` (oldest first), `candidates`, their number `size`, `features`.

    Of the candidates only those that the page shows; what a user lacks is missing.

    Args:
        chosen: as `choose_users` gives them.
        histories: (user_id, history).
        candidates: (user_id, candidates), a user may stand there several times.
        users: user_id and the features to show, as requests name them.
    """
    ids = [row[Col.USER_ID] for row in chosen]
    shown = [(row[Col.USER_ID], _shown_items(row)) for row in chosen]
    user, item = (
        candidates.schema[Col.USER_ID].dataType.simpleString(),
        candidates.schema[Col.CANDIDATES].dataType.elementType[Col.ITEM_ID].dataType.simpleString(),  # type: ignore[attr-defined]
    )
    wanted = candidates.sparkSession.createDataFrame(shown, f"{Col.USER_ID} {user}, {_WANTED} array<{item}>")
    theirs = candidates.join(F.broadcast(wanted), on=Col.USER_ID, how="inner").select(
        Col.USER_ID,
        F.size(Col.CANDIDATES).alias(_SIZE),
        F.filter(Col.CANDIDATES, lambda c: F.array_contains(_WANTED, c[Col.ITEM_ID])).alias(Col.CANDIDATES),
    )
    found: dict[Any, dict[str, Any]] = {user_id: {Col.CANDIDATES: [], _SIZE: 0} for user_id in ids}
    for row in theirs.collect():
        found[row[Col.USER_ID]][Col.CANDIDATES] += row[Col.CANDIDATES] or []
        found[row[Col.USER_ID]][_SIZE] += max(0, row[_SIZE] or 0)
    for row in histories.where(F.col(Col.USER_ID).isin(ids)).select(Col.USER_ID, Col.HISTORY).collect():
        found[row[Col.USER_ID]][Col.HISTORY] = row[Col.HISTORY]
    for row in users.where(F.col(Col.USER_ID).isin(ids)).collect():
        values = row.asDict()
        found[values.pop(Col.USER_ID)]["features"] = values
    return found


def sample_users(chosen: Sequence[Row], read: Mapping[Any, Mapping[str, Any]] | None) -> tuple[SampleUser, ...]:
    """Put both together; `read` is None where what the run read is gone."""
    return tuple(_user(row, None if read is None else read[row[Col.USER_ID]]) for row in chosen)


def _user(row: Row, read: Mapping[str, Any] | None) -> SampleUser:
    history = None if read is None else read.get(Col.HISTORY) or []
    times = None if history is None else Counter(event[Col.ITEM_ID] for event in history)
    sources = None if read is None else _sources(read[Col.CANDIDATES])
    bought, places = row[_BOUGHT] or [], {pair[Col.ITEM_ID]: pair[Col.RANK] for pair in row[_HITS] or []}
    return SampleUser(
        user_id=str(row[Col.USER_ID]),
        features={
            name.removeprefix(user_feature("")): _text(value)
            for name, value in (read or {}).get("features", {}).items()
        },
        history=tuple(_event(event) for event in reversed((history or [])[-EVENTS:])),
        history_events=None if history is None else len(history),
        ranked=tuple(_pair(pair, sources, times, bought) for pair in row[Col.RANKED]),
        published=row[_PUBLISHED],
        candidates=None if read is None else read[_SIZE],
        purchases=tuple(
            Purchase(str(item), places.get(item), None if sources is None else item in sources)
            for item in sorted(bought, key=lambda item: (places.get(item, float("inf")), str(item)))
        ),
    )


def _pair(
    pair: Row, sources: Mapping[Any, set[str]] | None, times: Mapping[Any, int] | None, bought: Sequence[Any]
) -> Ranked:
    item, prefix = pair[Col.ITEM_ID], logit("")
    return Ranked(
        rank=pair[Col.RANK],
        item_id=str(item),
        score=pair[Col.SCORE],
        logits={name.removeprefix(prefix): value for name, value in pair.asDict().items() if name.startswith(prefix)},
        sources=None if sources is None else ", ".join(sorted(sources.get(item, set()))),
        times_in_history=None if times is None else times.get(item, 0),
        bought=item in bought,
    )


def _sources(candidates: Sequence[Row]) -> dict[Any, set[str]]:
    found: dict[Any, set[str]] = {}
    for candidate in candidates:
        found.setdefault(candidate[Col.ITEM_ID], set()).add(candidate[Col.SOURCE] or "unnamed")
    return found


def _event(event: Row) -> Event:
    # Spark gives instants as this machine's wall clock has them, without a time zone.
    at = event[Col.EVENT_TS].astimezone(dt.timezone.utc)
    return Event(at, event[Col.ACTION] or "", str(event[Col.ITEM_ID]), event[Col.VALUE])


def _shown_items(row: Row) -> list[Any]:
    shown = [pair[Col.ITEM_ID] for pair in row[Col.RANKED]]
    return [*dict.fromkeys([*shown, *(row[_BOUGHT] or [])])]


def _text(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
