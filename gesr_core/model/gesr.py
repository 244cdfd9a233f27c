"""GESR: the two towers, and beside them hard matching, target and cross attention, fused by gating (gesr.md 1.2).

Legend: R items, B requests, T history positions, N candidates, P field pairs, G pairs of one shape, L their sorted
match ids, D model width, A layers, H heads, K width per head, S tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gesr_core.model.cross_attention import CrossAttention, CrossCache
from gesr_core.model.gating import Gating, PlainLogit
from gesr_core.model.hard_matching import HardMatching
from gesr_core.model.inputs import History, ItemFeatures, ItemState, UserFeatures
from gesr_core.model.sizes import ModelSizes
from gesr_core.model.target_attention import AttentionCache, TargetAttention
from gesr_core.model.towers import EventTokens, ItemTower, TaskDot, UserTower
from gesr_core.ops.matching import MatchPlan, match_counts, sort_matches


@dataclass(frozen=True)
class GesrUserState:
    """Once per request: the user vector and its task vectors, sorted match ids, keys and values of the history.

    `sorted_BGL` is one tensor for the pairs of each shape: none without hard matching. Without target attention
    `attention` is None, without cross attention `cross`.
    """

    user_BD: Tensor
    user_BSD: Tensor
    sorted_BGL: tuple[Tensor, ...]
    attention: AttentionCache | None
    cross: CrossCache | None


class Gesr(nn.Module):
    """A pair costs its match counts, one row through the attention layers against the cache, and the gates."""

    def __init__(
        self,
        sizes: ModelSizes,
        *,
        width: int,
        id_width: int,
        category_width: int,
        user_category_width: int,
        dropout: float,
        attention_layers: int,
        attention_heads: int,
        time_buckets: int,
        match_cap: int,
        match_width: int,
        gate_width: int,
        gating: bool,
        cross_width: int,
        cross_heads: int,
        match_offset: Literal["padded", "literal"] = "padded",
    ) -> None:
        super().__init__()
        pairs_counted = sizes.match_pairs if match_width else ()
        self.match_plan, self.match_cap = MatchPlan.of(pairs_counted, sizes.match_columns), match_cap
        self.item_tower = ItemTower(
            sizes, width=width, id_width=id_width, category_width=category_width, dropout=dropout
        )
        self.events = EventTokens(sizes, age_buckets=time_buckets, width=width)
        self.user_tower = UserTower(
            sizes, age_buckets=time_buckets, width=width, category_width=user_category_width, dropout=dropout
        )
        self.primary = TaskDot(width=width, task_logits=sizes.task_logits)
        matched_width = 2 * match_width if sizes.match_pairs else 0
        self.matching = (
            HardMatching(
                pairs=len(sizes.match_pairs),
                cap=match_cap,
                count_width=match_width,
                width=matched_width,
                offset=match_offset,
            )
            if matched_width
            else None
        )
        self.attention = (
            TargetAttention(
                layers=attention_layers,
                width=width,
                heads=attention_heads,
                max_history=sizes.max_history,
                time_buckets=time_buckets,
            )
            if attention_layers
            else None
        )
        self.cross = (
            CrossAttention(
                width=width,
                token_width=cross_width,
                heads=cross_heads,
                item_widths=[id_width, *([category_width] * len(sizes.item_categories))],
                item_numerics=sizes.item_numerics,
                user_widths=[width, *([user_category_width] * len(sizes.user_categories))],
                user_numerics=sizes.user_numerics,
            )
            if cross_width
            else None
        )
        attended = [width] * (bool(attention_layers) + bool(cross_width))
        part_widths = [*([matched_width] if matched_width else []), *attended]
        widths = [*part_widths, 3 * width + sum(part_widths)]
        self.gating: nn.Module = (
            Gating(widths=widths, gate_width=gate_width, tasks=len(sizes.task_logits))
            if gating
            else PlainLogit(width=widths[-1], hidden_width=gate_width, tasks=len(sizes.task_logits))
        )

    def encode_items(self, items: ItemFeatures) -> ItemState:
        """Return the state of R items."""
        vector_RD, token_RD = self.item_tower(items)
        extra = self.events.of_items(items)
        if self.cross is not None:
            extra |= self.cross.of_items(token_RD, self.item_tower.embedded(items), items.numeric_RF)
        return ItemState(vector_RD, token_RD, items.match_RM, extra)

    def encode_user(self, history: History, history_items: ItemState, user: UserFeatures) -> GesrUserState:
        """Return the state of B requests; `history_items` is gathered by `history.row_BT`."""
        event_BTD = self.events(history, history_items.token_RD, history_items.extra)
        user_BD = self.user_tower(user, history, event_BTD)
        sorted_BGL = sort_matches(
            history_items.match_RM, plan=self.match_plan, age_s_BT=history.age_s_BT, action_BT=history.action_BT
        )
        cache = self.attention.prefill(history, event_BTD) if self.attention else None
        crossed = None
        if self.cross is not None:
            embedded = [user_BD, *self.user_tower.categories.each(user.categorical_BC)]
            crossed = self.cross.prefill(history, event_BTD, embedded, user.numeric_BF)
        user_BSD = self.primary.user(user_BD, self.user_tower.liked(history, history_items.vector_RD))
        return GesrUserState(user_BD, user_BSD, sorted_BGL, cache, crossed)

    def score(self, state: GesrUserState, items: ItemState) -> Tensor:
        """Return logits_BNS of candidates whose states are gathered as [B, N, ...]."""
        vector_BND = items.vector_RD
        user_BND = state.user_BD.unsqueeze(1).expand_as(vector_BND)
        parts = self._parts(state, items)
        everything = torch.cat([user_BND, vector_BND, user_BND * vector_BND, *parts], dim=-1)
        return self.gating(self.primary(state.user_BSD, vector_BND), [*parts, everything])

    def _parts(self, state: GesrUserState, items: ItemState) -> list[Tensor]:
        """What each attention module that is switched on says of the pairs, [B, N, its width]."""
        parts = []
        if self.matching is not None:
            counts_BNP = match_counts(state.sorted_BGL, items.match_RM, plan=self.match_plan, cap=self.match_cap)
            parts.append(self.matching(counts_BNP))
        if self.attention is not None and state.attention is not None:
            parts.append(self.attention.extend(state.attention, items.token_RD))
        if self.cross is not None and state.cross is not None:
            parts.append(self.cross.extend(state.cross, items.extra))
        return parts
