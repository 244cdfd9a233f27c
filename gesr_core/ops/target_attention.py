"""HSTU-style attention of candidates (targets) to a history: a plain form over the whole sequence, and a cached form.

No softmax: SiLU(q.k / sqrt(K) + bias) / normaliser, as the public HSTU code has it. The mask is the public one (gesr.md
1b.3): the history is causal, a target sees the whole history and itself, never another target. The normaliser is a
constant (ours: the configured maximum history): a divisor of the present length would let scores move with the batch.

Legend: B requests, T history positions, N targets, L = T + N, H heads, K width per head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gesr_core.ops.dispatch import use_kernels


def target_mask(length_B: Tensor, *, history: int, targets: int) -> Tensor:
    """Return mask_BLL, true where a row may see a column, for `history` padded positions and then `targets`."""
    place_L = torch.arange(history + targets, device=length_B.device)
    is_target_L = place_L >= history
    causal_LL = place_L.unsqueeze(-1) >= place_L
    itself_LL = place_L.unsqueeze(-1) == place_L
    column_is_event_BL = place_L < length_B.unsqueeze(-1)
    sees_event_BLL = causal_LL & column_is_event_BL.unsqueeze(1)
    return torch.where(is_target_L, itself_LL, sees_event_BLL)


def attend(
    q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, *, bias_BHLL: Tensor, mask_BLL: Tensor, normaliser: float
) -> Tensor:
    """Return attended_BHLK of every row to the columns that its mask allows: the plain form."""
    scores_BHLL = q_BHLK * q_BHLK.shape[-1] ** -0.5 @ k_BHLK.transpose(-1, -2) + bias_BHLL
    return F.silu(scores_BHLL) * mask_BLL.unsqueeze(1) @ v_BHLK / normaliser


def attend_history(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, *, bias_BHTT: Tensor, normaliser: float) -> Tensor:
    """Return attended_BHTK of each event to itself and the earlier ones.

    Padding lies after the events, so the causal mask alone keeps it from them; rows of padding hold no meaning.
    """
    weights_GTT = _weights(q_BHTK, k_BHTK, bias_BHTT)
    weights_GTT = weights_GTT.tril() if torch.is_grad_enabled() else weights_GTT.tril_()
    return (weights_GTT @ v_BHTK.flatten(0, 1)).view_as(q_BHTK) / normaliser


def attend_cached(
    q_BHNK: Tensor,
    k_BHNK: Tensor,
    v_BHNK: Tensor,
    *,
    history_k_BHTK: Tensor,
    history_v_BHTK: Tensor,
    bias_BHT: Tensor,
    own_bias_H: Tensor,
    normaliser: float,
    length_B: Tensor,
) -> Tensor:
    """Return attended_BHNK of each target to the cached history and to itself: exactly the target rows of `attend`.

    `history_v_BHTK` must be zero at padding: whatever weight a padded position gets is then lost. One bias serves all
    the targets of a request, because they share the request time and the position after the last event. On a GPU, where
    no gradients are recorded, by a kernel that keeps no weights and stops at `length_B`.
    """
    if use_kernels(q_BHNK):
        from gesr_core.ops import kernels

        return kernels.attend_cached(
            q_BHNK,
            k_BHNK,
            v_BHNK,
            history_k_BHTK=history_k_BHTK,
            history_v_BHTK=history_v_BHTK,
            bias_BHT=bias_BHT,
            own_bias_H=own_bias_H,
            normaliser=normaliser,
            length_B=length_B,
        )
    seen_BHNK = (_weights(q_BHNK, history_k_BHTK, bias_BHT.unsqueeze(2)) @ history_v_BHTK.flatten(0, 1)).view_as(q_BHNK)
    own_BHN = (q_BHNK * k_BHNK).sum(-1) * q_BHNK.shape[-1] ** -0.5 + own_bias_H.unsqueeze(-1)
    return torch.addcmul(seen_BHNK, F.silu(own_BHN).unsqueeze(-1), v_BHNK) / normaliser


def _weights(q_BHLK: Tensor, k_BHTK: Tensor, bias: Tensor) -> Tensor:
    """Return weights [B * H, L, T]; `bias` is [B, H, L or 1, T].

    Written once and changed in place: weights are the largest tensor there is, and passes over it cost as much as the
    products.
    """
    scale = q_BHLK.shape[-1] ** -0.5
    k_GKT = k_BHTK.flatten(0, 1).transpose(1, 2)
    scores_GLT = torch.baddbmm(bias.flatten(0, 1), q_BHLK.flatten(0, 1), k_GKT, alpha=scale)
    return F.silu(scores_GLT, inplace=not torch.is_grad_enabled())
