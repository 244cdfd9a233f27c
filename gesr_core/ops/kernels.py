"""Triton kernels for a GPU: hard match counts, and attention of candidates to a cached history. For inference alone.

Imported only where a GPU is used (`ops.matching` and `ops.target_attention` say when); there Triton comes with torch.
Nothing of the size N x T is ever in memory. Their plain forms stand in those modules, and say what is computed.

Counted per candidate (P field pairs with W values, L = T * W ids; H heads of width K, D = H * K):
- counts: 2 * P * W * (log2(L) + 1) steps of a binary search, each a load that hits the cache (a request's ids are a few
  kilobytes and are read by all its candidates), against P * W * L comparisons of the plain form;
- attention: 4 * T * D multiplications and additions in two products, T * H SiLUs, and 4 * D values read or written.

Legend: B requests, T history positions, N candidates, M columns of match fields, G pairs of one shape, H heads, K width
per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_N, _BLOCK_T = 64, 64
# The smallest side of a product on tensor cores.
_LEAST = 16


@triton.jit
def count_matches(
    sorted_ids, candidates, counts, places, columns,
    groups, length, targets, fields, pairs, cap,
    WIDTH: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Count, for a pair of fields of a request and a block of its candidates, the ids that equal candidates' values.

    By two binary searches in the sorted ids at once: how many are below a value, and how many are not above it. The
    last step is 1, the first the largest power of two that `length` holds.
    """
    row = tl.program_id(0).to(tl.int64)
    batch, group = row // groups, row % groups
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < targets
    place, column = tl.load(places + group), tl.load(columns + group)
    ids = sorted_ids + row * length
    total = tl.zeros([BLOCK_N], tl.int32)
    for w in range(WIDTH):
        value = tl.load(candidates + (batch * targets + n) * fields + place + w, mask=inside, other=0)
        below = tl.zeros([BLOCK_N], tl.int32)
        not_above = tl.zeros([BLOCK_N], tl.int32)
        for step in tl.static_range(STEPS):
            size = 1 << (STEPS - 1 - step)
            there = below + size <= length
            found = tl.load(ids + below + size - 1, mask=there, other=0)
            below = tl.where(there & (found < value), below + size, below)
            there = not_above + size <= length
            found = tl.load(ids + not_above + size - 1, mask=there, other=0)
            not_above = tl.where(there & (found <= value), not_above + size, not_above)
        total += tl.where(value != 0, not_above - below, 0)
    counted = tl.minimum(total, cap).to(tl.int64)
    tl.store(counts + (batch * targets + n) * pairs + column, counted, mask=inside)


@triton.jit
def attend_targets(
    q, k, v, keys, values, bias, own_bias, lengths, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, keys_b, keys_h, keys_t, values_b, values_h, values_t,
    bias_b, bias_h, bias_t, out_b, out_h, out_n,
    heads, targets, width, scale, normaliser,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Attend from a block of candidates of one request, in one head, to its history and to themselves.

    The history goes by in blocks, whose weights live in registers alone; blocks behind its end are left out.
    """
    row = tl.program_id(0).to(tl.int64)
    batch, head = row // heads, row % heads
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_K)
    inside = (n < targets)[:, None] & (d < width)[None, :]
    length = tl.load(lengths + batch)
    query = tl.load(q + batch * q_b + head * q_h + n[:, None] * q_n + d[None, :], mask=inside, other=0.0)
    own_key = tl.load(k + batch * k_b + head * k_h + n[:, None] * k_n + d[None, :], mask=inside, other=0.0)
    own_value = tl.load(v + batch * v_b + head * v_h + n[:, None] * v_n + d[None, :], mask=inside, other=0.0)
    own = tl.sum(query.to(tl.float32) * own_key.to(tl.float32), 1) * scale + tl.load(own_bias + head).to(tl.float32)
    attended = (own * tl.sigmoid(own))[:, None] * own_value.to(tl.float32)
    query = (query * scale).to(query.dtype)
    for start in range(0, length, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        seen = t < length
        there = seen[:, None] & (d < width)[None, :]
        key = tl.load(keys + batch * keys_b + head * keys_h + t[:, None] * keys_t + d[None, :], mask=there, other=0.0)
        offsets = batch * values_b + head * values_h + t[:, None] * values_t + d[None, :]
        value = tl.load(values + offsets, mask=there, other=0.0)
        shift = tl.load(bias + batch * bias_b + head * bias_h + t * bias_t, mask=seen, other=0.0).to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") + shift[None, :]
        weight = score * tl.sigmoid(score)
        attended += tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    place = out + batch * out_b + head * out_h + n[:, None] * out_n + d[None, :]
    tl.store(place, (attended / normaliser).to(out.dtype.element_ty), mask=inside)


def match_counts(
    sorted_ids: Sequence[Tensor],
    candidate_BNM: Tensor,
    *,
    groups: Sequence[Sequence[int]],
    places: Sequence[int],
    widths: Sequence[int],
    cap: int,
) -> Tensor:
    """Return counts_BNP, int64, as `ops.matching.match_counts` does.

    Args:
        sorted_ids: sorted_BGL of each group of pairs.
        candidate_BNM: match ids of the candidates.
        groups: the numbers of the pairs in each group.
        places: per pair, the first of its candidate field's columns.
        widths: per pair, how many columns that is.
        cap: the highest count.
    """
    batch, targets, fields = candidate_BNM.shape
    counts_BNP = candidate_BNM.new_zeros(batch, targets, len(places), dtype=torch.int64)
    candidate_BNM = candidate_BNM.contiguous()
    for group, sorted_BGL in zip(groups, sorted_ids, strict=True):
        length = sorted_BGL.shape[-1]
        if not counts_BNP.numel() or not length:
            continue
        first = [places[number] for number in group]
        grid = (batch * len(group), triton.cdiv(targets, _BLOCK_N))
        count_matches[grid](
            sorted_BGL.contiguous(),
            candidate_BNM,
            counts_BNP,
            torch.tensor(first, dtype=torch.int32, device=candidate_BNM.device),
            torch.tensor(list(group), dtype=torch.int32, device=candidate_BNM.device),
            len(group),
            length,
            targets,
            fields,
            len(places),
            cap,
            WIDTH=widths[group[0]],
            STEPS=length.bit_length(),
            BLOCK_N=_BLOCK_N,
        )
    return counts_BNP


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
    """Return attended_BHNK as `ops.target_attention.attend_cached` does; products in fp32 are IEEE's, not TF32."""
    batch, heads, targets, width = q_BHNK.shape
    # As [B, N, H, K] in memory: so that the heads lie side by side for what comes next.
    out_BHNK = q_BHNK.new_empty(batch, targets, heads, width).transpose(1, 2)
    if not out_BHNK.numel():
        return out_BHNK
    tensors = [_dense(t) for t in (q_BHNK, k_BHNK, v_BHNK, history_k_BHTK, history_v_BHTK)]
    attend_targets[(batch * heads, triton.cdiv(targets, _BLOCK_N))](
        *tensors,
        bias_BHT,
        own_bias_H.contiguous(),
        length_B.clamp_max(history_k_BHTK.shape[2]),
        out_BHNK,
        *(stride for t in tensors for stride in t.stride()[:3]),
        *bias_BHT.stride(),
        *out_BHNK.stride()[:3],
        heads,
        targets,
        width,
        width**-0.5,
        normaliser,
        **attention_blocks(width),
    )
    return out_BHNK


def attention_blocks(width: int) -> dict[str, Any]:
    """Return the block sizes of `attend_targets` for heads of some width."""
    return {"BLOCK_N": _BLOCK_N, "BLOCK_T": _BLOCK_T, "BLOCK_K": max(_LEAST, triton.next_power_of_2(width))}


def _dense(tensor: Tensor) -> Tensor:
    """With its last dimension dense in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
