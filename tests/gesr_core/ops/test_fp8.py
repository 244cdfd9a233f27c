"""Rows of float8 numbers: what rounding costs, and that a GPU's product is the plain one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gesr_core.ops.fp8 import FP8, LARGEST, has_fp8_products, linear_fp8, quantise_rows

HAS_FP8 = torch.cuda.is_available() and has_fp8_products(torch.device("cuda"))


@given(rows=st.integers(1, 9), exponent=st.integers(-6, 6), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_each_row_is_rounded_to_three_bits_whatever_its_size(rows: int, exponent: int, seed: int) -> None:
    given_XI = torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    given_XI[0] = 0
    rounded_XI, scale_X1 = quantise_rows(given_XI)
    assert rounded_XI.dtype == FP8
    back_XI = rounded_XI.float() * scale_X1
    assert back_XI.isfinite().all()
    assert not back_XI[0].any()
    # Half a step of 3 bits, or of the smallest number that float8 has.
    step_XI = torch.maximum(2.0**-4 * given_XI.abs(), 2.0**-10 * scale_X1)
    assert ((back_XI - given_XI).abs() <= step_XI * (1 + 1e-5)).all()


def test_the_largest_of_a_row_is_the_largest_that_there_is() -> None:
    rounded_XI, _ = quantise_rows(torch.tensor([[1.0, -7.0, 3.0]]))
    assert rounded_XI.float().abs().max() == LARGEST


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_FP8, reason="no GPU that multiplies float8 numbers")
def test_a_gpus_product_is_the_plain_one() -> None:
    torch.manual_seed(0)
    x, (weight, scale) = torch.randn(300, 128), quantise_rows(torch.randn(64, 128))
    bias = torch.randn(64).bfloat16()
    plain = linear_fp8(x, weight, scale, bias).float()
    fast = linear_fp8(*(t.cuda() for t in (x, weight, scale, bias))).float().cpu()
    assert (plain - fast).abs().max() <= 2**-7 * plain.abs().max()
