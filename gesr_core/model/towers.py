"""The two towers: items, a history's events and users to vectors, and their dot product per task.

Papers name the towers but not their layers: everything here but the dot product is ours.

Legend: R items (of any leading shape), B requests, T history positions, N candidates, C columns of the categorical
features, W columns of one of them, F numeric features, D model width, E concatenated inputs, K age buckets, S tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gesr_core.model.embeddings import EMBEDDING_STD, embedding
from gesr_core.model.event_signals import EventSignals
from gesr_core.model.inputs import History, ItemFeatures, UserFeatures
from gesr_core.model.sizes import ModelSizes
from gesr_core.ops.ages import bucket_ages, log_edges_s


def mlp(width_in: int, width_hidden: int, width_out: int, *, dropout: float) -> nn.Sequential:
    """Return Linear, SiLU, dropout, Linear."""
    return nn.Sequential(
        nn.Linear(width_in, width_hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width_hidden, width_out)
    )


class ExactLinear(nn.Linear):
    """A linear layer of the logit itself: in its weights' precision also under autocast, and never stored in less."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what `nn.Linear` does."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right in the precision of `right`, also under autocast."""
    with torch.autocast(right.device.type, enabled=False):
        return left.to(right.dtype) @ right


class Categories(nn.Module):
    """Categorical features side by side, one table each; a feature of several columns (lists of values) is the mean of
    its values' embeddings.

    In a list 0 stands for no value (its end, or a value that training never saw), and a list without any is zeros.
    With a width of 0 nothing is said of any feature.
    """

    def __init__(self, *, sizes: Sequence[int], width: int, columns: Sequence[int] = ()) -> None:
        """`columns` are the features' numbers of columns; empty: one each."""
        super().__init__()
        self.tables = nn.ModuleList(embedding(size, width) for size in sizes if width)
        self.columns = tuple(columns) or (1,) * len(sizes)
        self.width_out = width * len(sizes)

    def each(self, categorical_RC: Tensor) -> list[Tensor]:
        """Return the embedding [..., width] of each feature; with a width of 0 none."""
        if not self.tables:
            return []
        features = categorical_RC.split(self.columns, dim=-1)
        return [_embedded(table, index_RW) for table, index_RW in zip(self.tables, features, strict=True)]

    def forward(self, categorical_RC: Tensor) -> Tensor:
        """Return the embeddings [..., features * width] of vocabulary indices [..., C]."""
        embedded = self.each(categorical_RC)
        # The zero-width tensor keeps the leading shape when no category is declared.
        return torch.cat([categorical_RC.new_zeros(*categorical_RC.shape[:-1], 0, dtype=torch.float32), *embedded], -1)


class ItemTower(nn.Module):
    """An item's features to its vector, and to the token that stands for it in a history and as a candidate."""

    def __init__(self, sizes: ModelSizes, *, width: int, id_width: int, category_width: int, dropout: float) -> None:
        """Without an `id_width` items are known by their features alone, without a `category_width` by numbers."""
        super().__init__()
        self.ids = embedding(sizes.item_ids, id_width, std=2 * EMBEDDING_STD) if id_width else None
        self.categories = Categories(
            sizes=sizes.item_categories, width=category_width, columns=sizes.item_category_columns
        )
        width_in = id_width + self.categories.width_out + sizes.item_numerics
        self.vector = mlp(width_in, 2 * width, width, dropout=dropout)
        self.own = None
        if id_width:
            # Past the hidden layer, so that from the first step on two vectors are alike where it is the same item.
            self.own = nn.Linear(id_width, width, bias=False)
            nn.init.normal_(self.own.weight, std=id_width**-0.5)
        self.token = nn.Linear(width_in, width)

    def embedded(self, items: ItemFeatures) -> list[Tensor]:
        """Return what there are embeddings of: the id [R, id width] first, then each categorical feature."""
        ids = [] if self.ids is None else [self.ids(items.index_R)]
        return [*ids, *self.categories.each(items.categorical_RC)]

    def forward(self, items: ItemFeatures) -> tuple[Tensor, Tensor]:
        """Return vector_RD and token_RD."""
        embedded = self.embedded(items)
        input_RE = torch.cat([*embedded, items.numeric_RF], dim=-1)
        vector_RD = self.vector(input_RE)
        if self.own is not None:
            vector_RD = vector_RD + self.own(embedded[0])
        return vector_RD, self.token(input_RE)


class EventTokens(nn.Module):
    """An event's token: the item's, plus the action's, the value's, the age's and those of the declared signals."""

    edges_s: Tensor

    def __init__(self, sizes: ModelSizes, *, age_buckets: int, width: int) -> None:
        super().__init__()
        self.actions = embedding(sizes.actions, width)
        self.ages = embedding(age_buckets, width)
        self.value = nn.Linear(1, width, bias=False)
        self.signals = EventSignals(signals=sizes.event_signals, age_buckets=age_buckets, width=width)
        self.register_buffer("edges_s", torch.tensor(log_edges_s(age_buckets)), persistent=False)

    def of_items(self, items: ItemFeatures) -> dict[str, Tensor]:
        """Return what `ItemState.extra` must keep of R items for `forward`."""
        return self.signals.of_items(items)

    def forward(self, history: History, token_BTD: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
        """Return event_BTD; what stands at padding has no meaning.

        `token_BTD` and `kept` are `token_RD` and `extra` of the items' states, gathered by `history.row_BT`.
        """
        value_BT = history.value_BT.nan_to_num(0.0)
        value_BT = value_BT.sign() * value_BT.abs().log1p()
        age_BTD = self.ages(bucket_ages(history.age_s_BT, self.edges_s))
        event_BTD = token_BTD + self.actions(history.action_BT) + age_BTD + self.value(value_BT.unsqueeze(-1))
        return self.signals(event_BTD, history, kept)


class HistoryPooling(nn.Module):
    """A history to its plain mean and to a mean weighted by age, with one learned weight per age bucket."""

    edges_s: Tensor

    def __init__(self, *, age_buckets: int) -> None:
        super().__init__()
        # Falls with age from the start: exp(0) for the newest bucket, exp(-2) for the oldest.
        self.log_weight = nn.Parameter(torch.linspace(0, -2, age_buckets))
        self.register_buffer("edges_s", torch.tensor(log_edges_s(age_buckets)), persistent=False)

    def forward(self, history: History, event_BTD: Tensor) -> Tensor:
        """Return pooled [B, 2 * D + 1]: both means and the log of the number of events; zeros for an empty history."""
        mean_BD = _weighted_mean(event_BTD, history.valid_BT.to(event_BTD.dtype))
        log_length_B1 = history.length_B.to(event_BTD.dtype).log1p().unsqueeze(-1)
        return torch.cat([mean_BD, self.recent_mean(history, event_BTD), log_length_B1], dim=-1)

    def recent_mean(self, history: History, row_BTD: Tensor) -> Tensor:
        """Return mean_BD of one row per event, weighted by age."""
        weight_BT = self.log_weight[bucket_ages(history.age_s_BT, self.edges_s)].exp() * history.valid_BT
        return _weighted_mean(row_BTD, weight_BT.to(row_BTD.dtype))


class HistoryProfile(nn.Module):
    """How much a history holds of each age: per age bucket the log of its events and of its different times.

    When a user came last, how often, and since when: means over events blur it. Nothing here is learned.
    """

    edges_s: Tensor

    def __init__(self, *, age_buckets: int) -> None:
        super().__init__()
        self.width_out = 2 * age_buckets
        self.register_buffer("edges_s", torch.tensor(log_edges_s(age_buckets)), persistent=False)

    def forward(self, history: History) -> Tensor:
        """Return profile [B, 2 * age buckets], zeros for an empty history."""
        age_s_BT, valid_BT = history.age_s_BT, history.valid_BT
        # Events are in the order of their times: those of one time stand side by side.
        again_BT = F.pad(age_s_BT[:, 1:] == age_s_BT[:, :-1], (1, 0), value=False)
        buckets = torch.arange(self.width_out // 2, device=age_s_BT.device)
        in_bucket_BTK = (bucket_ages(age_s_BT, self.edges_s).unsqueeze(-1) == buckets) & valid_BT.unsqueeze(-1)
        events_BK = in_bucket_BTK.sum(1)
        times_BK = (in_bucket_BTK & ~again_BT.unsqueeze(-1)).sum(1)
        return torch.cat([events_BK, times_BK], dim=-1).to(torch.float32).log1p()


class UserTower(nn.Module):
    """A user's features, pooled history and its profile to the user vector."""

    def __init__(
        self,
        sizes: ModelSizes,
        *,
        age_buckets: int,
        width: int,
        category_width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.categories = Categories(
            sizes=sizes.user_categories, width=category_width, columns=sizes.user_category_columns
        )
        self.pooling = HistoryPooling(age_buckets=age_buckets)
        self.profile = HistoryProfile(age_buckets=age_buckets)
        width_in = self.categories.width_out + sizes.user_numerics + 2 * width + 1 + self.profile.width_out
        self.vector = mlp(width_in, 2 * width, width, dropout=dropout)

    def forward(self, user: UserFeatures, history: History, event_BTD: Tensor) -> Tensor:
        """Return user_BD."""
        of_history = [self.pooling(history, event_BTD), self.profile(history)]
        return self.vector(torch.cat([self.categories(user.categorical_BC), user.numeric_BF, *of_history], dim=-1))

    def liked(self, history: History, vector_BTD: Tensor) -> Tensor:
        """Return liked_BD, the mean of the item vectors of a history, weighted by age."""
        return self.pooling.recent_mean(history, vector_BTD)


class TaskDot(nn.Module):
    """The primary logit: per task, a user's task vector times the item vector, and a bias.

    The task vector is a projection of the user vector, and of the mean of the item vectors of the user's history: an
    item like those of the history scores high from the first step on. Under autocast it stays exact: rounded to 8 bits,
    a logit of 4 is known to 0.008, which is further than candidates lie apart.
    """

    def __init__(self, *, width: int, task_logits: Sequence[float]) -> None:
        super().__init__()
        self.project = ExactLinear(width, width * len(task_logits))
        self.project_liked = ExactLinear(width, width * len(task_logits), bias=False)
        with torch.no_grad():
            self.project_liked.weight.copy_(torch.eye(width).repeat(len(task_logits), 1))
        # The base rate from the start: a learning rate of 1e-3 would need thousands of steps to reach a logit of -5.
        self.bias_S = nn.Parameter(torch.tensor(list(task_logits), dtype=torch.float32))

    def user(self, user_BD: Tensor, liked_BD: Tensor) -> Tensor:
        """Return the task vectors user_BSD, once per request; `liked_BD` is the mean of the history's item vectors."""
        projected = self.project(user_BD) * user_BD.shape[-1] ** -0.5 + self.project_liked(liked_BD)
        return projected.unflatten(-1, (len(self.bias_S), user_BD.shape[-1]))

    def forward(self, user_BSD: Tensor, item_BND: Tensor) -> Tensor:
        """Return logits_BNS."""
        return exact_product(item_BND, user_BSD.transpose(1, 2)) + self.bias_S


def _embedded(table: nn.Module, index_RW: Tensor) -> Tensor:
    if index_RW.shape[-1] == 1:
        return table(index_RW.squeeze(-1))
    known_RW1 = (index_RW != 0).unsqueeze(-1)
    total_RD = table(index_RW).masked_fill(~known_RW1, 0).sum(-2)
    return total_RD / known_RW1.sum(-2).clamp_min(1)


def _weighted_mean(event_BTD: Tensor, weight_BT: Tensor) -> Tensor:
    # The sum of weights is the divisor: the mean of the same events is the same under any padding.
    total_B1 = weight_BT.sum(1, keepdim=True).clamp_min(1e-6)
    return (weight_BT.unsqueeze(1) @ event_BTD).squeeze(1) / total_B1
