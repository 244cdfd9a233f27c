"""How weights follow from gradients: the optimizer and its rate. Runs in a training process; torch only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from gesr_core.training.processes import Processes

WARM_UP_SHARE: Final = 0.05
FINAL_RATE_SHARE: Final = 0.05


@dataclass
class Rule:
    """How weights follow from gradients: AdamW, whose rate rises and falls over a known number of steps.

    `done` counts the steps taken.
    """

    optimizer: torch.optim.Optimizer
    processes: Processes
    learning_rate: float
    steps: int
    done: int = 0

    @staticmethod
    def of(
        model: nn.Module,
        *,
        processes: Processes,
        learning_rate: float,
        weight_decay: float,
        steps: int,
    ) -> Rule:
        """Make a fresh one; what is no matrix (biases, norms, gates' weights) does not decay."""
        matrices = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        return Rule(optimizer, processes, learning_rate, steps)

    @property
    def share_done(self) -> float:
        """The share of all steps that is done; windows that do not divide by the batch make a few steps more."""
        return min(1.0, self.done / self.steps)

    def step(self, loss: Tensor | None) -> float:
        """Take one step down the gradient of the processes' losses (None: no request is here); return their sum."""
        self.optimizer.zero_grad()
        if loss is not None:
            loss.backward()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        total = self.processes.add_up(parameters, loss)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_share(self.done, steps=self.steps)
        self.optimizer.step()
        self.done += 1
        return total

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state; `restore` takes it back."""
        states = self.optimizer.state_dict()["state"]
        return {f"{number}.{name}": tensor for number, state in states.items() for name, tensor in state.items()}

    def restore(self, tensors: Mapping[str, Tensor], *, steps: int) -> None:
        """Go on after `steps` steps with what `tensors` gave then."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            number, name = key.split(".")
            states.setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        self.done = steps


def rate_share(step: int, *, steps: int) -> float:
    """Return the share of the learning rate at a step: a linear warm-up, then a linear fall (ours)."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    left = (steps - step) / max(1, steps - warm_up)
    return max(FINAL_RATE_SHARE, left)
