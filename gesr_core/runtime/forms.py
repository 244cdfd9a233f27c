"""In which form a model is run: in which precision, and whether compiled. No JVM.

fp32, as it lies in the checkpoint, is the reference; every other form is compared with it on requests of the day
(trial.py) before score_daily scores any. What must not be rounded stays fp32 in each: the buckets that ages fall into,
what hard matching and event signals compare, the products and sums of the primary logit, and the sum of logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn

from gesr_core.errors import ConfigurationError
from gesr_core.model.build import Model
from gesr_core.model.inputs import History, ItemState, UserFeatures
from gesr_core.model.towers import ExactLinear
from gesr_core.ops.fp8 import MULTIPLE, has_fp8_products, linear_fp8, quantise_rows

Precision = Literal["fp32", "bf16", "fp8"]
Compiled = Literal["off", "on", "graphs"]
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp8")
# A smaller layer takes longer to round its input than to multiply it.
_LARGE: Final = 64 * 128
COMPILED: Final[tuple[Compiled, ...]] = ("off", "on", "graphs")

# The logits [B, N, S], in fp32, of histories, the states of their items, users, and the states of candidates.
Logits = Callable[[History, ItemState, UserFeatures, ItemState], Tensor]


@dataclass(frozen=True)
class Form:
    """`bf16`: matrix products of bfloat16 numbers, summed in fp32. `fp8`: and those of large linear layers of float8
    numbers. `compiled`: by torch.compile, once per worker for all shapes; `graphs`: and replayed from CUDA graphs.
    Compiled kernels may follow the first shapes that a worker sees: they repeat up to rounding, and not bit for bit.
    """

    precision: Precision = "fp32"
    compiled: Compiled = "off"

    def __str__(self) -> str:
        return self.precision if self.compiled == "off" else f"{self.precision}, compiled ({self.compiled})"


EXACT: Final = Form()


def forms_of(precision: Precision | Literal["auto"], compiled: Compiled | Literal["auto"]) -> list[Form]:
    """Return the forms that a configuration allows, the exact one first where it does."""
    precisions = PRECISIONS if precision == "auto" else (precision,)
    kinds = COMPILED if compiled == "auto" else (compiled,)
    return [Form(one, kind) for kind in kinds for one in precisions]


def lowered(model: nn.Module, precision: Precision) -> nn.Module:
    """Return the model with the weights of its linear layers stored in `precision`; the given one stays as it is.

    Those of the primary logit stay exact.
    """
    if precision == "fp32":
        return model
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if not isinstance(layer, nn.Linear) or isinstance(layer, ExactLinear):
                continue
            if precision == "fp8" and Fp8Linear.suits(layer):
                setattr(module, name, Fp8Linear(layer))
            else:
                layer.to(torch.bfloat16)
    return model


class Fp8Linear(nn.Module):
    """A linear layer of float8 weights; `weight` is what they stand for, in bfloat16, for who takes only some of it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight_OI, scale_O1 = quantise_rows(layer.weight.detach())
        self.register_buffer("weight8", weight_OI)
        self.register_buffer("scale", scale_O1)
        self.register_buffer("weight", (weight_OI.float() * scale_O1).bfloat16())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().bfloat16())

    @staticmethod
    def suits(layer: nn.Linear) -> bool:
        """Say whether a layer is large enough, and its sides whole blocks."""
        whole = layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0
        return whole and layer.in_features * layer.out_features >= _LARGE

    def forward(self, input_XI: Tensor) -> Tensor:
        """Return [..., out_features] in bfloat16."""
        return linear_fp8(input_XI, self.weight8, self.scale, self.bias)

    weight8: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor | None


def lowered_items(items: ItemState, precision: Precision) -> ItemState:
    """Return item states whose tokens are stored in `precision`; the vectors are the primary logit's, and stay."""
    return items if precision == "fp32" else replace(items, token_RD=items.token_RD.bfloat16())


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a model computes in `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def logits_of(model: nn.Module, form: Form, *, device: torch.device) -> Logits:
    """Return the function that scores with a model (as `lowered` gave it) in a form.

    Compiling happens at the first call.

    Raises:
        ConfigurationError: CUDA graphs are asked for, and the device is none of CUDA's; or float8 products, which it
            has not.
    """
    if form.precision == "fp8" and not has_fp8_products(device):
        raise ConfigurationError(
            f"scoring.precision is fp8, which only newer GPUs multiply, but the device is {device}"
        )
    if form.compiled == "graphs" and device.type != "cuda":
        raise ConfigurationError(f"scoring.compile is graphs, which only a GPU has, but the device is {device}")
    composed = cast(Model, model)

    def logits(history: History, history_items: ItemState, user: UserFeatures, candidates: ItemState) -> Tensor:
        with computing(form.precision, device):
            return composed.score(composed.encode_user(history, history_items, user), candidates).float()

    if form.compiled == "off":
        return logits
    # One set of kernels for all shapes: compiling takes most of a minute, and shapes are many.
    compiled: Logits = torch.compile(
        logits, dynamic=True, mode="reduce-overhead" if form.compiled == "graphs" else None
    )
    if form.compiled == "on":
        return compiled

    def replayed(history: History, history_items: ItemState, user: UserFeatures, candidates: ItemState) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        # A graph's result is overwritten by its next run.
        return compiled(history, history_items, user, candidates).clone()

    return replayed
