"""Target-aware self attention: HSTU layers over a history and its candidates (gesr.md 1.5, 1b.3).

The layer is HSTU's (norm, one linear, SiLU, split u,v,q,k; attention; u * norm(attention); linear; residual). That the
bias is pairwise, by distance and by log-spaced time difference, in every layer, is our choice. Two forms, one result:
`forward` goes over the concatenated sequence, `prefill` and `extend` over the history once and then over the targets.

Legend: B requests, T history positions, N targets, L = T + N, A layers, H heads, K width per head, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gesr_core.model.embeddings import embedding
from gesr_core.model.inputs import History
from gesr_core.ops.ages import bucket_ages, log_edges_s
from gesr_core.ops.target_attention import attend, attend_cached, attend_history, target_mask


@dataclass(frozen=True)
class AttentionCache:
    """What the targets of B requests need of their histories; values are zero at padding."""

    keys_BAHTK: Tensor
    values_BAHTK: Tensor
    bias_BAHT: Tensor
    length_B: Tensor


class RelativeBias(nn.Module):
    """A learned bias per head from how many positions and how many seconds lie between two rows."""

    edges_s: Tensor

    def __init__(self, *, heads: int, max_history: int, time_buckets: int) -> None:
        super().__init__()
        self.positions = embedding(max_history + 1, heads)
        self.times = embedding(time_buckets, heads)
        self.register_buffer("edges_s", torch.tensor(log_edges_s(time_buckets)), persistent=False)

    def forward(self, later: Tensor, elapsed_s: Tensor) -> Tensor:
        """Return the bias [B, H, ...] for distances `later` [B or 1, ...] and `elapsed_s` [B, ...].

        Both are >= 0 wherever a row may look; elsewhere they may be anything.
        """
        position = _each_head(self.positions.weight, later.clamp(0, self.positions.num_embeddings - 1))
        return position + _each_head(self.times.weight, bucket_ages(elapsed_s, self.edges_s))

    def own_H(self) -> Tensor:
        """Return a row's bias to itself: no distance, no time."""
        return self.positions.weight[0] + self.times.weight[0]


def _each_head(weight_XH: Tensor, index: Tensor) -> Tensor:
    """Return [B, H, ...] of indices [B, ...]: head by head, so that nothing is moved afterwards."""
    flat = index.flatten()
    return torch.stack([weight_X.index_select(0, flat).view_as(index) for weight_X in weight_XH.unbind(1)], dim=1)


class TargetAttentionLayer(nn.Module):
    """One HSTU layer, for history rows and for target rows."""

    def __init__(self, *, width: int, heads: int, max_history: int, time_buckets: int) -> None:
        super().__init__()
        self.heads = heads
        self.normaliser = float(max_history)
        self.norm = nn.LayerNorm(width)
        self.uvqk = nn.Linear(width, 4 * width)
        self.attended_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)
        self.bias = RelativeBias(heads=heads, max_history=max_history, time_buckets=time_buckets)

    def project(self, row_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return u_BLD and v, q, k as [B, H, L, K]."""
        u, v, q, k = nn.functional.silu(self.uvqk(self.norm(row_BLD))).chunk(4, dim=-1)
        return u, self._split(v), self._split(q), self._split(k)

    def finish(self, row_BLD: Tensor, u_BLD: Tensor, attended_BHLK: Tensor) -> Tensor:
        """Return the layer's output rows_BLD."""
        attended_BLD = attended_BHLK.transpose(1, 2).flatten(-2)
        return row_BLD + self.output(u_BLD * self.attended_norm(attended_BLD))

    def forward(self, row_BLD: Tensor, *, later_BLL: Tensor, elapsed_s_BLL: Tensor, mask_BLL: Tensor) -> Tensor:
        """Return the output rows of the concatenated sequence: the plain form."""
        u, v, q, k = self.project(row_BLD)
        bias_BHLL = self.bias(later_BLL, elapsed_s_BLL)
        attended = attend(q, k, v, bias_BHLL=bias_BHLL, mask_BLL=mask_BLL, normaliser=self.normaliser)
        return self.finish(row_BLD, u, attended)

    def history_keys(self, event_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, H, T, K] alone: all that is wanted of the history in the last layer."""
        width = event_BTD.shape[-1]
        weight, bias = self.uvqk.weight, self.uvqk.bias
        normed_BTD = self.norm(event_BTD)
        value_BTD = nn.functional.linear(normed_BTD, weight[width : 2 * width], bias[width : 2 * width])
        key_BTD = nn.functional.linear(normed_BTD, weight[3 * width :], bias[3 * width :])
        return self._split(nn.functional.silu(key_BTD)), self._split(nn.functional.silu(value_BTD))

    def _split(self, row_BLD: Tensor) -> Tensor:
        return row_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TargetAttention(nn.Module):
    """A stack of layers; what comes out is each target's own row."""

    def __init__(self, *, layers: int, width: int, heads: int, max_history: int, time_buckets: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TargetAttentionLayer(width=width, heads=heads, max_history=max_history, time_buckets=time_buckets)
            for _ in range(layers)
        )
        self.target = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)

    def forward(self, history: History, event_BTD: Tensor, token_BND: Tensor) -> Tensor:
        """Return target_BND, by the plain form over [history; targets]: the reference for `prefill` and `extend`."""
        events, targets = event_BTD.shape[1], token_BND.shape[1]
        place_BL, age_s_BL = _places_and_ages(history, targets=targets)
        mask_BLL = target_mask(history.length_B, history=events, targets=targets)
        row_BLD = torch.cat([event_BTD, token_BND + self.target], dim=1)
        for layer in self._stack():
            row_BLD = layer(
                row_BLD,
                later_BLL=place_BL.unsqueeze(2) - place_BL.unsqueeze(1),
                elapsed_s_BLL=age_s_BL.unsqueeze(1) - age_s_BL.unsqueeze(2),
                mask_BLL=mask_BLL,
            )
        return self.norm(row_BLD[:, events:])

    def prefill(self, history: History, event_BTD: Tensor) -> AttentionCache:
        """Return the histories' keys, values and biases of every layer, once per request."""
        padding_B1T1 = ~history.valid_BT[:, None, :, None]
        place_T = torch.arange(event_BTD.shape[1], device=event_BTD.device)
        later_1TT = (place_T.unsqueeze(1) - place_T).unsqueeze(0)
        age_s_BT = history.age_s_BT
        elapsed_s_BTT = age_s_BT.unsqueeze(1) - age_s_BT.unsqueeze(2)
        keys, values, biases = [], [], []
        for i, layer in enumerate(self._stack()):
            if i + 1 < len(self.layers):
                u, v, q, k = layer.project(event_BTD)
                bias_BHTT = layer.bias(later_1TT, elapsed_s_BTT)
                attended = attend_history(q, k, v, bias_BHTT=bias_BHTT, normaliser=layer.normaliser)
                event_BTD = layer.finish(event_BTD, u, attended)
            else:
                k, v = layer.history_keys(event_BTD)
            keys.append(k)
            values.append(v.masked_fill(padding_B1T1, 0))
            biases.append(layer.bias(history.length_B.unsqueeze(1) - place_T, age_s_BT))
        return AttentionCache(torch.stack(keys, 1), torch.stack(values, 1), torch.stack(biases, 1), history.length_B)

    def extend(self, cache: AttentionCache, token_BND: Tensor) -> Tensor:
        """Return target_BND of candidates against the cached histories."""
        row_BND = token_BND + self.target
        for i, layer in enumerate(self._stack()):
            u, v, q, k = layer.project(row_BND)
            attended = attend_cached(
                q,
                k,
                v,
                history_k_BHTK=cache.keys_BAHTK[:, i],
                history_v_BHTK=cache.values_BAHTK[:, i],
                bias_BHT=cache.bias_BAHT[:, i],
                own_bias_H=layer.bias.own_H(),
                normaliser=layer.normaliser,
                length_B=cache.length_B,
            )
            row_BND = layer.finish(row_BND, u, attended)
        return self.norm(row_BND)

    def _stack(self) -> list[TargetAttentionLayer]:
        # ModuleList forgets what it holds.
        return cast("list[TargetAttentionLayer]", list(self.layers))


def _places_and_ages(history: History, *, targets: int) -> tuple[Tensor, Tensor]:
    """Positions and ages of [history; targets]: all targets stand right after the last event, at the request time."""
    batch, events = history.row_BT.shape
    place_BT = torch.arange(events, device=history.row_BT.device).expand(batch, events)
    place_BL = torch.cat([place_BT, history.length_B.unsqueeze(1).expand(batch, targets)], dim=1)
    return place_BL, torch.cat([history.age_s_BT, history.age_s_BT.new_zeros(batch, targets)], dim=1)
