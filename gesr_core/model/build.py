"""From the model section of the configuration to a model: the only reader of that section.

`Model` is what every model is: the three functions of the README (How it scores).

Legend: B requests, N candidates, S tasks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from gesr_core.config import GesrConfig, TwoTowerConfig
from gesr_core.model.event_signals import EventSignal
from gesr_core.model.gesr import Gesr
from gesr_core.model.inputs import History, ItemFeatures, ItemState, UserFeatures
from gesr_core.model.two_tower import TwoTower
from gesr_core.ops.matching import MatchPair


class Model(Protocol):
    """What every model is: training and serving call these three functions and nothing else."""

    def encode_items(self, items: ItemFeatures) -> ItemState:
        """Once per item."""

    def encode_user(self, history: History, history_items: ItemState, user: UserFeatures) -> Any:
        """Once per request: a frozen dataclass of tensors whose first dimension is B."""

    def score(self, state: Any, items: ItemState) -> Tensor:
        """Once per pair: logits_BNS."""


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


def build_model(config: TwoTowerConfig | GesrConfig, sizes: ModelSizes) -> nn.Module:
    """Return the model, a `Model`, with fresh weights from torch's global generator."""
    arguments = asdict(sizes)
    settings = config.model_dump(exclude={"name"})
    if isinstance(config, TwoTowerConfig):
        for gesr_only in ("match_pairs", "match_columns", "max_history"):
            arguments.pop(gesr_only)
        return TwoTower(**arguments, **settings)
    return Gesr(**arguments, **settings)
