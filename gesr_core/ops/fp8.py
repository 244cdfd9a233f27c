"""Linear layers with weights of eight bits: products of float8 (e4m3) numbers, scaled row by row.

Each row of the input and each row of the weights is scaled by its own largest magnitude, so that an outlier costs its
row alone. A plain form multiplies the rounded numbers in fp32; a GPU's own product of them sums in fp32 too: the two
differ by the order of sums. After training alone; nothing here has a gradient.

Legend: X rows of the input, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

FP8: Final = torch.float8_e4m3fn
LARGEST: Final = torch.finfo(FP8).max
# The product wants rows of whole blocks of 16 bytes.
MULTIPLE: Final = 16


def quantise_rows(rows_XI: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows as float8 numbers and the scales [X, 1] by which they are multiplied to be the rows again."""
    scale_X1 = rows_XI.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / LARGEST
    # Rounding up to just above the largest would be infinite.
    return (rows_XI / scale_X1).clamp(-LARGEST, LARGEST).to(FP8), scale_X1


def has_fp8_products(device: torch.device) -> bool:
    """Say whether a device multiplies float8 numbers itself: GPUs from compute capability 8.9 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def linear_fp8(input_XI: Tensor, weight_OI: Tensor, scale_O1: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return input times weight plus bias, [..., O] in bfloat16.

    Args:
        input_XI: [..., I], rounded here.
        weight_OI: float8, as `quantise_rows` gave it.
        scale_O1: its scales.
        bias_O: bfloat16.
    """
    flat_XI, scale_X1 = quantise_rows(input_XI.flatten(0, -2))
    if has_fp8_products(input_XI.device):
        found_XO = torch._scaled_mm(
            flat_XI, weight_OI.t(), scale_a=scale_X1, scale_b=scale_O1.t(), bias=bias_O, out_dtype=torch.bfloat16
        )
    else:
        bias = None if bias_O is None else bias_O.float()
        with torch.autocast(input_XI.device.type, enabled=False):
            found_XO = F.linear(flat_XI.float() * scale_X1, weight_OI.float() * scale_O1, bias).bfloat16()
    return found_XO.unflatten(0, input_XI.shape[:-1])
