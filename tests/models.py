"""Small models with random weights, and random inputs that every one of them takes. No JVM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gesr_core.config import AnyModelConfig, GesrConfig, TarqConfig, TwoTowerConfig
from gesr_core.model.build import build_model
from gesr_core.model.event_signals import EventSignal
from gesr_core.model.inputs import History, ItemFeatures, ItemState, UserFeatures
from gesr_core.model.sizes import ModelSizes
from gesr_core.ops.matching import MatchPair

ITEMS, MAX_HISTORY = 12, 6
SIZES = ModelSizes(
    item_ids=8,
    item_categories=(4, 3, 5),
    item_numerics=2,
    user_categories=(3, 4),
    user_numerics=1,
    actions=3,
    match_pairs=(
        MatchPair(0, 0),
        MatchPair(1, 1),
        MatchPair(0, 1),
        MatchPair(2, 2),
        MatchPair(0, 0, max_age_s=4_000_000),
        MatchPair(0, 2, actions=(1, 2)),
    ),
    max_history=MAX_HISTORY,
    task_logits=(-2.0, -3.0),
    item_category_columns=(1, 1, 3),
    user_category_columns=(1, 2),
    match_columns=(1, 1, 3),
    event_signals=(EventSignal("below_share", 0.3, 0), EventSignal("repeat"), EventSignal("days_since_same")),
)
WIDTHS: dict[str, Any] = {"width": 8, "id_width": 8, "category_width": 4, "user_category_width": 2, "dropout": 0.1}
TWO_TOWER = TwoTowerConfig(**WIDTHS, time_buckets=8)
GESR = GesrConfig(
    **WIDTHS, attention_layers=2, attention_heads=2, time_buckets=8, match_cap=2, match_width=4, gate_width=8
)
TARQ = TarqConfig(**WIDTHS, time_buckets=8, heads=2, levels=2, codes=5, head_width=8, warm_up_share=0.0)
# What a model is not told of: which item it is, and which values categories have.
UNTOLD = {"id_width": 0, "category_width": 0, "user_category_width": 0}
CONFIGS: dict[str, AnyModelConfig] = {
    "two_tower": TWO_TOWER,
    "gesr": GESR,
    "gesr of one layer": GESR.model_copy(update={"attention_layers": 1}),
    "gesr without attention": GESR.model_copy(update={"attention_layers": 0}),
    "gesr without gating": GESR.model_copy(update={"gating": False}),
    "gesr without hard matching": GESR.model_copy(update={"match_width": 0}),
    "gesr of gating alone": GESR.model_copy(update={"match_width": 0, "attention_layers": 0}),
    "gesr with cross attention": GESR.model_copy(update={"cross_width": 4, "cross_heads": 2}),
    "tarq": TARQ,
    "tarq of one level": TARQ.model_copy(update={"levels": 1}),
    "tarq's teacher": TARQ.model_copy(update={"serves": "teacher"}),
    "tarq's backbone": TARQ.model_copy(update={"serves": "backbone"}),
    "gesr of cross attention": GESR.model_copy(update={"cross_width": 4, "attention_layers": 0}),
    "gesr of the published offset": GESR.model_copy(update={"match_offset": "literal"}),
    "gesr of numbers and matches": GESR.model_copy(update={**UNTOLD, "cross_width": 4}),
}


@dataclass(frozen=True)
class Inputs:
    """Items, histories of the given lengths, users and candidates."""

    items: ItemFeatures
    history: History
    user: UserFeatures
    candidate_BN: Tensor


def random_inputs(lengths: list[int], *, candidates: int = 5, seed: int = 0, padding: int = 0) -> Inputs:
    """Draw inputs in float64; `padding` more history positions than the longest history needs.

    Rows of -1 (items that the table lacks) occur among events and candidates.
    """
    g = torch.Generator().manual_seed(seed)
    batch, events = len(lengths), max(lengths) + padding
    length_B = torch.tensor(lengths)
    valid_BT = torch.arange(events) < length_B.unsqueeze(-1)
    numeric_RF = torch.randn(ITEMS, 2, generator=g, dtype=torch.float64)
    categorical_RC = torch.stack([torch.randint(0, size, (ITEMS,), generator=g) for size in (4, 3)], dim=1)
    match_RM = torch.randint(0, 4, (ITEMS, 2), generator=g, dtype=torch.int32)
    index_R = torch.randint(0, 8, (ITEMS,), generator=g)
    # Drawn at the largest size and cut, so that padding changes nothing but the padding.
    row_BT = torch.randint(-1, ITEMS, (batch, 32), generator=g)[:, :events]
    age_s_BT = (
        (torch.rand(batch, 32, generator=g, dtype=torch.float64) * 1e7).sort(1, descending=True).values[:, :events]
    )
    action_BT = torch.randint(0, 3, (batch, 32), generator=g)[:, :events]
    value_BT = torch.randn(batch, 32, generator=g, dtype=torch.float64)[:, :events]
    value_BT = torch.where(value_BT < -1, torch.nan, value_BT)
    history = History(
        row_BT.masked_fill(~valid_BT, -1),
        age_s_BT * valid_BT,
        action_BT * valid_BT,
        value_BT.masked_fill(~valid_BT, 0),
        length_B,
    )
    category_BC, numeric_BF = torch.randint(0, 3, (batch, 1), generator=g), torch.randn(batch, 1, generator=g)
    candidate_BN = torch.randint(-1, ITEMS, (batch, candidates), generator=g)
    # Lists of at most 3 and 2 values, and raw values of which some are missing.
    list_RC, list_BC = torch.randint(0, 5, (ITEMS, 3), generator=g), torch.randint(0, 4, (batch, 2), generator=g)
    list_RM = torch.randint(0, 4, (ITEMS, 3), generator=g, dtype=torch.int32)
    raw_RV = torch.randint(0, 4, (ITEMS, 1), generator=g, dtype=torch.float64)
    return Inputs(
        ItemFeatures(
            index_R, torch.cat([categorical_RC, list_RC], 1), numeric_RF, torch.cat([match_RM, list_RM], 1), raw_RV
        ),
        history,
        UserFeatures(torch.cat([category_BC, list_BC], 1), numeric_BF.double()),
        candidate_BN,
    )


def random_model(config: AnyModelConfig, *, seed: int = 0) -> Any:
    """Build a model in float64 whose every weight is random, also those that start at zero."""
    torch.manual_seed(seed)
    model: Any = build_model(config, SIZES).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    if isinstance(config, TarqConfig):
        # As if it had been trained: without this no code is asked.
        model.codebooks.ready.fill_(True)
    return model


def scores(model: Any, inputs: Inputs, candidate_BN: Tensor | None = None) -> Tensor:
    """Compose the three functions; logits [B, N, S]."""
    states: ItemState = model.encode_items(inputs.items)
    user_state = model.encode_user(inputs.history, states.take(inputs.history.row_BT), inputs.user)
    return model.score(user_state, states.take(inputs.candidate_BN if candidate_BN is None else candidate_BN))
