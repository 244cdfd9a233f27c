"""Multi-logit parameterised gating: parallel secondary logits, fused with the primary one (gesr.md 1.7, 1b.6).

That logits are several, parallel and gated per dimension is the paper's; the formula is ours:
g_k = 2 sigmoid(W2_k act(W1_k x_k)), z_k = head_k(g_k * x_k), z = z_0 + sum_k alpha_k z_k, alpha per task.

Legend: B requests, N candidates, X width of one input, K hidden width of a head, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gesr_core.model.towers import mlp


class GatedLogits(nn.Module):
    """One secondary logit per task from one input, whose dimensions are amplified or damped by a gate of its own."""

    def __init__(self, *, width: int, gate_width: int, tasks: int) -> None:
        super().__init__()
        # No dropout here: drawing it for every pair costs more time than the layers.
        self.gate = mlp(width, gate_width, width, dropout=0.0)
        self.head = mlp(width, gate_width, tasks, dropout=0.0)
        # The gate starts at 1 everywhere and the head at 0: at first the model is the two-tower exactly.
        for parameter in (*self.gate[-1].parameters(), *self.head[-1].parameters()):
            nn.init.zeros_(parameter)

    def forward(self, input_BNX: Tensor) -> Tensor:
        """Return logits_BNS."""
        first = cast(nn.Linear, self.head[0])
        # The gate's factor 2 goes into the weights, which changes no bit: there are far more pairs than weights.
        gate_BNX = self.gate(input_BNX)
        # In place where nothing is to be learned: what is as wide as the input is dear to write.
        gated_BNX = (
            torch.sigmoid(gate_BNX) * input_BNX if torch.is_grad_enabled() else gate_BNX.sigmoid_().mul_(input_BNX)
        )
        hidden_BNK = F.linear(gated_BNX, 2 * first.weight, first.bias)
        return cast(Tensor, self.head[1:](hidden_BNK))


class PlainLogit(nn.Module):
    """What stands in for the gating where it is switched off: one secondary logit from all inputs, without gates."""

    def __init__(self, *, width: int, hidden_width: int, tasks: int) -> None:
        super().__init__()
        self.head = mlp(width, hidden_width, tasks, dropout=0.0)
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, primary_BNS: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Return logits_BNS; the last of `inputs` holds all the others."""
        return primary_BNS + self.head(inputs[-1])


class Gating(nn.Module):
    """Adds the secondary logits of several inputs to the primary logit."""

    def __init__(self, *, widths: Sequence[int], gate_width: int, tasks: int) -> None:
        super().__init__()
        self.logits = nn.ModuleList(GatedLogits(width=width, gate_width=gate_width, tasks=tasks) for width in widths)
        self.alpha_KS = nn.Parameter(torch.ones(len(widths), tasks))

    def forward(self, primary_BNS: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Return logits_BNS; `inputs` are [B, N, width] in the order of `widths`."""
        for alpha_S, logits, input_BNX in zip(self.alpha_KS, self.logits, inputs, strict=True):
            primary_BNS = primary_BNS + alpha_S * logits(input_BNX)
        return primary_BNS
