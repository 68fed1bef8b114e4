"""What packed bytes mean, read by numpy from the layouts that pack.py describes, and a call of the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.formats import (
    BF16,
    BF16_DOT,
    CENTRE,
    CODE4,
    CODE4_DOT,
    CODE8,
    CODE8_DOT,
    F16,
    F32,
    MatrixFormat,
)
from lightwork.kernels.cpu.pack import pack
from lightwork.kernels.cpu.tile import multiply
from lightwork.models.precisions.quant import NF4

Floats = NDArray[np.float64]


def packed(w_NK: NDArray[Any], form: MatrixFormat) -> NDArray[np.uint8]:
    into = np.full(form.nbytes(*w_NK.shape), 0xA5, np.uint8)
    pack(w_NK, into, form)
    return into


def unpacked(bytes_: NDArray[np.uint8], form: MatrixFormat, inputs: int) -> tuple[Floats, Floats]:
    """The padded matrix [N, K], and the sizes of the terms each number is a sum of."""
    blocks = bytes_.reshape(-1, form.block_bytes(inputs))
    k = form.padded(inputs)
    if form.code in CENTRE:
        parts = [_codes(block, form, k) for block in blocks]
        return np.concatenate([w for w, _ in parts]), np.concatenate([size for _, size in parts])
    raw = blocks.view({F32: np.float32, F16: np.float16}.get(form.code, np.uint16))
    wide = bfloat16(raw) if form.code in (BF16, BF16_DOT) else raw.astype(np.float64)
    pairs = 2 if form.code == BF16_DOT else 1
    w = wide.reshape(len(blocks), k // pairs, 64, pairs).transpose(0, 2, 1, 3).reshape(-1, k)
    return w, abs(w)


def _codes(block: NDArray[np.uint8], form: MatrixFormat, k: int) -> tuple[Floats, Floats]:
    """One block of codes: scale * value + offset."""
    groups = block.reshape(k // form.group, -1)
    scales = groups[:, :128].copy().view(np.float16).astype(np.float64)
    head = 256 if form.affine else 128
    offsets = groups[:, 128:256].copy().view(np.float16).astype(np.float64) if form.affine else 0 * scales
    codes = groups[:, head:]
    if form.four_bits:
        halves = codes.reshape(len(groups), -1, 2, 16, 4)
        codes = np.stack([halves & 15, halves >> 4], 3)
    codes = codes.reshape(len(groups), -1, 64, 4).transpose(2, 0, 1, 3).reshape(64, len(groups), form.group)
    values = np.array(form.table)[codes] if form.table else codes - float(CENTRE[form.code])
    w = scales.T[:, :, None] * values + offsets.T[:, :, None]
    size = abs(scales).T[:, :, None] * abs(values) + abs(offsets).T[:, :, None]
    return w.reshape(64, k), size.reshape(64, k)


def bfloat16(bits: NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def table_of(form: MatrixFormat) -> NDArray[np.float32]:
    return np.array(form.table or [i - 8.0 for i in range(16)], np.float32)


@compiled
def call(
    kernel: int,
    w: int,
    table: int,
    x: int,
    x_stride: int,
    scales: int,
    sums: int,
    group_stride: int,
    out: int,
    out_stride: int,
    rows: int,
    inputs: int,
    group: int,
) -> None:
    """`multiply` is code for other compiled code; this is the code."""
    multiply(kernel, w, table, x, x_stride, scales, sums, group_stride, out, out_stride, rows, inputs, group)


FORMATS: dict[str, MatrixFormat] = {
    "F32": MatrixFormat(code=F32),
    "BF16": MatrixFormat(code=BF16),
    "F16": MatrixFormat(code=F16),
    "BF16_DOT": MatrixFormat(code=BF16_DOT),
    **{
        f"{name} {group}{' affine' * affine}": MatrixFormat(code=code, group=group, affine=affine)
        for name, code in (
            ("CODE8", CODE8),
            ("CODE4", CODE4),
            ("CODE8_DOT", CODE8_DOT),
            ("CODE4_DOT", CODE4_DOT),
        )
        for group, affine in ((32, False), (128, False), (32, True))
    },
    "NF4 64": MatrixFormat(code=CODE4, group=64, table=NF4),
}
