"""What stands between the matrix products of a Llama-like layer, one kernel each, equal to
`models.transformer` up to the order of a sum. Multiply-adds are not fused: products round as they do there.

R rows  d hidden  H query heads  G key-value heads  D head size  F MLP width  T slots
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightwork.kernels.gpu._triton import at_least, constexpr, kernel, tensor, tl

COLUMNS = 1024
"""Columns of one program of `gated`."""


def rms_norm(x_Rd: Tensor, weight_d: Tensor, eps: float, add_Rd: Tensor | None = None) -> Tensor:
    """RMSNorm with float32 statistics (Zhang and Sennrich, 2019), after x += add, in place, if there is one.

    The norm is rounded to x's type before the weight is applied, as transformers does.
    """
    out_Rd = torch.empty_like(x_Rd)
    rows, hidden = x_Rd.shape
    block = at_least(hidden, 16)
    _rms_norm[(rows,)](
        x_Rd,
        x_Rd if add_Rd is None else add_Rd,
        weight_d,
        out_Rd,
        eps,
        ADD=add_Rd is not None,
        HIDDEN=hidden,
        BLOCK=block,
        num_warps=min(16, max(4, block // 512)),
        enable_fp_fusion=False,
    )
    return out_Rd


@kernel
def _rms_norm(
    x: tensor,
    add: tensor,
    weight: tensor,
    out: tensor,
    eps: tensor,
    ADD: constexpr,
    HIDDEN: constexpr,
    BLOCK: constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * HIDDEN
    d = tl.arange(0, BLOCK)
    live = d < HIDDEN
    row = tl.load(x + at + d, mask=live, other=0.0).to(tl.float32)
    if ADD:
        total = (row + tl.load(add + at + d, mask=live, other=0.0).to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + at + d, total, mask=live)
        row = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row, 0) / HIDDEN + eps)
    normed = (row * scale).to(x.dtype.element_ty).to(tl.float32)
    weighted = normed * tl.load(weight + d, mask=live, other=0.0).to(tl.float32)
    tl.store(out + at + d, weighted.to(out.dtype.element_ty), mask=live)


def rotate_and_store(
    qkv_RW: Tensor,
    cos_RD: Tensor,
    sin_RD: Tensor,
    slots_R: Tensor,
    keys_TGD: Tensor,
    values_TGD: Tensor,
    *,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate queries in place; write rotated keys, and values, to their slots. A slot below 0 is not written.

    qkv: [R, (H + 2G) D]. cos, sin: [R, D/2]. With q_norm and k_norm, heads are normalised first (Qwen3).
    """
    kv_heads, size = keys_TGD.shape[1:]
    num_heads = qkv_RW.shape[1] // size
    normed = q_norm_D is not None and k_norm_D is not None
    _rotate_and_store[(len(qkv_RW),)](
        qkv_RW,
        cos_RD,
        sin_RD,
        slots_R,
        keys_TGD,
        values_TGD,
        q_norm_D if normed else qkv_RW,
        k_norm_D if normed else qkv_RW,
        eps,
        NORMED=normed,
        QUERIES=num_heads - 2 * kv_heads,
        KV_HEADS=kv_heads,
        HALF=size // 2,
        HEADS=at_least(num_heads, 2),
        PADDED=at_least(size // 2, 2),
        enable_fp_fusion=False,
    )


@kernel
def _rotate_and_store(
    qkv: tensor,
    cos: tensor,
    sin: tensor,
    slots: tensor,
    keys: tensor,
    values: tensor,
    q_norm: tensor,
    k_norm: tensor,
    eps: tensor,
    NORMED: constexpr,
    QUERIES: constexpr,
    KV_HEADS: constexpr,
    HALF: constexpr,
    HEADS: constexpr,
    PADDED: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    dtype: constexpr = qkv.dtype.element_ty
    head = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, PADDED)[None, :]
    inside = (head < QUERIES + 2 * KV_HEADS) & (d < HALF)
    is_query = head < QUERIES
    is_key = (head >= QUERIES) & (head < QUERIES + KV_HEADS)
    at = qkv + (row * (QUERIES + 2 * KV_HEADS) + head) * (2 * HALF) + d
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if slot >= 0:
        value = values + (slot * KV_HEADS + head - QUERIES - KV_HEADS) * (2 * HALF) + d
        tl.store(value, low.to(dtype), mask=inside & (head >= QUERIES + KV_HEADS))
        tl.store(value + HALF, high.to(dtype), mask=inside & (head >= QUERIES + KV_HEADS))
    if NORMED:
        scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + eps)[:, None]
        weight = tl.where(is_query, q_norm + d, k_norm + d)
        low_weight = tl.load(weight, mask=inside, other=0.0).to(tl.float32)
        high_weight = tl.load(weight + HALF, mask=inside, other=0.0).to(tl.float32)
        low = (low * scale).to(dtype).to(tl.float32) * low_weight
        high = (high * scale).to(dtype).to(tl.float32) * high_weight
        low, high = low.to(dtype).to(tl.float32), high.to(dtype).to(tl.float32)
    c = tl.load(cos + row * HALF + d, mask=d < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + row * HALF + d, mask=d < HALF, other=0.0).to(tl.float32)
    first = ((low * c).to(dtype).to(tl.float32) - (high * s).to(dtype).to(tl.float32)).to(dtype)
    second = ((high * c).to(dtype).to(tl.float32) + (low * s).to(dtype).to(tl.float32)).to(dtype)
    tl.store(at, first, mask=inside & is_query)
    tl.store(at + HALF, second, mask=inside & is_query)
    if slot >= 0:
        key = keys + (slot * KV_HEADS + head - QUERIES) * (2 * HALF) + d
        tl.store(key, first, mask=inside & is_key)
        tl.store(key + HALF, second, mask=inside & is_key)


def gated(up_RF: Tensor) -> Tensor:
    """silu(gate) * value of [R, 2F], gate first; returns [R, F]."""
    rows, double = up_RF.shape
    out_RF = torch.empty((rows, double // 2), dtype=up_RF.dtype, device=up_RF.device)
    grid = (rows, -(-double // 2 // COLUMNS))
    _gated[grid](up_RF, out_RF, double // 2, BLOCK=COLUMNS, enable_fp_fusion=False)
    return out_RF


@kernel
def _gated(up: tensor, out: tensor, width: tensor, BLOCK: constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < width
    gate = tl.load(up + row * 2 * width + column, mask=live, other=0.0).to(tl.float32)
    value = tl.load(up + row * 2 * width + width + column, mask=live, other=0.0).to(tl.float32)
    activated = (gate / (1.0 + tl.exp(-gate))).to(up.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + column, (activated * value).to(out.dtype.element_ty), mask=live)
