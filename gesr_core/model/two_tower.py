"""The two-tower baseline of both papers: user and item meet only in a dot product.

No model reads `source` or `retrieval_score`: what a pair's score depends on belongs to an event, an item or a user.

Legend: R items, B requests, T history positions, N candidates, D model width, S tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gesr_core.model.inputs import History, ItemFeatures, ItemState, UserFeatures
from gesr_core.model.sizes import ModelSizes
from gesr_core.model.towers import EventTokens, ItemTower, TaskDot, UserTower


@dataclass(frozen=True)
class TwoTowerUserState:
    """Once per request: one vector per task."""

    user_BSD: Tensor


class TwoTower(nn.Module):
    """Item vectors are computed once per item, user vectors once per request; a pair costs one dot product per task."""

    def __init__(
        self,
        sizes: ModelSizes,
        *,
        width: int,
        id_width: int,
        category_width: int,
        user_category_width: int,
        dropout: float,
        time_buckets: int,
    ) -> None:
        super().__init__()
        self.item_tower = ItemTower(
            sizes, width=width, id_width=id_width, category_width=category_width, dropout=dropout
        )
        self.events = EventTokens(sizes, age_buckets=time_buckets, width=width)
        self.user_tower = UserTower(
            sizes, age_buckets=time_buckets, width=width, category_width=user_category_width, dropout=dropout
        )
        self.primary = TaskDot(width=width, task_logits=sizes.task_logits)

    def encode_items(self, items: ItemFeatures) -> ItemState:
        """Return the state of R items."""
        vector_RD, token_RD = self.item_tower(items)
        return ItemState(vector_RD, token_RD, items.match_RM, self.events.of_items(items))

    def encode_user(self, history: History, history_items: ItemState, user: UserFeatures) -> TwoTowerUserState:
        """Return the state of B requests; `history_items` is gathered by `history.row_BT`."""
        event_BTD = self.events(history, history_items.token_RD, history_items.extra)
        liked_BD = self.user_tower.liked(history, history_items.vector_RD)
        return TwoTowerUserState(self.primary.user(self.user_tower(user, history, event_BTD), liked_BD))

    def score(self, state: TwoTowerUserState, items: ItemState) -> Tensor:
        """Return logits_BNS of candidates whose states are gathered as [B, N, ...]."""
        return self.primary(state.user_BSD, items.vector_RD)
