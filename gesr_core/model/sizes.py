"""What the data fixes about a model's shapes, apart from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from gesr_core.model.event_signals import EventSignal
from gesr_core.ops.matching import MatchPair


@dataclass(frozen=True)
class ModelSizes:
    """What the vocabularies and the declared features fix about a model; sizes include index 0 (unknown)."""

    item_ids: int
    item_categories: tuple[int, ...]
    item_numerics: int
    user_categories: tuple[int, ...]
    user_numerics: int
    actions: int
    match_pairs: tuple[MatchPair, ...]
    max_history: int
    # Per task, the logit of its base rate in the training requests.
    task_logits: tuple[float, ...]
    # Per feature or match field, its columns: 1, or as many as a list of values may hold; empty: 1 each.
    item_category_columns: tuple[int, ...] = ()
    user_category_columns: tuple[int, ...] = ()
    match_columns: tuple[int, ...] = ()
    event_signals: tuple[EventSignal, ...] = ()
