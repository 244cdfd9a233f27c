"""From the model section of the configuration to a model: the only reader of that section.

`Model` is what every model is: the three functions of the README (How it scores). `LearnsMore` is what a model adds to
them that learns more than its logits.

Legend: B requests, N candidates, S tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from gesr_core.config import AnyModelConfig, GesrConfig, TwoTowerConfig
from gesr_core.model.gesr import Gesr
from gesr_core.model.inputs import History, ItemFeatures, ItemState, UserFeatures
from gesr_core.model.sizes import ModelSizes
from gesr_core.model.tarq import LossWeights, Tarq
from gesr_core.model.two_tower import TwoTower


class Model(Protocol):
    """What every model is: training and serving call these three functions and nothing else."""

    def encode_items(self, items: ItemFeatures) -> ItemState:
        """Once per item."""

    def encode_user(self, history: History, history_items: ItemState, user: UserFeatures) -> Any:
        """Once per request: a frozen dataclass of tensors whose first dimension is B."""

    def score(self, state: Any, items: ItemState) -> Tensor:
        """Once per pair: logits_BNS."""


@runtime_checkable
class LearnsMore(Protocol):
    """What training calls, beside the three functions, of a model that has more to learn: a teacher, codebooks.

    Resuming after a kill restores parameters and buffers, nothing else: what such a model must remember is a buffer.
    """

    def before_step(self, *, share_done: float, items: ItemFeatures) -> None:
        """Called before every training step, in training mode and without gradients: set up or revive codebooks here.

        This alone may change weights or buffers by hand: of several processes, each calls it with the same weights and
        random state, and so comes to the same result, while `extra_loss` sees but its own share of the batch.

        Args:
            share_done: how much of the pass is done, 0 at its first step; a date that is learned at last has its own.
            items: the items as of the newest training date.
        """

    def extra_loss(
        self,
        state: Any,
        candidates: ItemState,
        *,
        task_loss: Callable[[Tensor], Tensor],
        valid_BN: Tensor,
        pairs: float,
    ) -> Tensor:
        """Return a scalar that is added to the loss: a sum over pairs, divided by `pairs`.

        Called after `score`, on the same tensors and under the same precision.

        Args:
            state: what `encode_user` gave.
            candidates: the states of the candidates, [B, N, ...].
            task_loss: the loss of logits_BNS as the served logits get it (correction, weights of pairs and tasks).
            valid_BN: True where there is a candidate.
            pairs: the candidates of the whole batch, of which another process may hold a part.
        """

    def report(self, items: ItemFeatures) -> dict[str, float]:
        """Return numbers for the log and the epoch's metrics, by name; called in evaluation mode after each epoch."""


def build_model(config: AnyModelConfig, sizes: ModelSizes) -> nn.Module:
    """Return the model, a `Model`, with fresh weights from torch's global generator."""
    settings = config.model_dump(exclude={"name"})
    if isinstance(config, GesrConfig):
        return Gesr(sizes, **settings)
    if isinstance(config, TwoTowerConfig):
        return TwoTower(sizes, **settings)
    weights = LossWeights(**{name: settings.pop(f"{name}_weight") for name in LossWeights.__dataclass_fields__})
    return Tarq(sizes, **settings, weights=weights)
