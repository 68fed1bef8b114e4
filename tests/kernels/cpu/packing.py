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
from lightwork.kernels.cpu.primitives import multiply
from lightwork.models.precisions.quant import NF4

Floats = NDArray[np.float64]
Halves = NDArray[np.float16]
Codes = NDArray[np.uint8]


def packed(w_NK: NDArray[Any], form: MatrixFormat) -> NDArray[np.uint8]:
    into = np.full(form.nbytes(*w_NK.shape), 0xA5, np.uint8)
    pack(w_NK, into, form)
    return into


def unpacked(bytes_: NDArray[np.uint8], form: MatrixFormat, inputs: int) -> tuple[Floats, Floats]:
    """The padded matrix [N, K], and the sizes of the terms each number is a sum of."""
    k = form.padded(inputs)
    if form.code in CENTRE:
        codes, scales, offsets = coded(bytes_, form, inputs)
        values = np.array(form.table)[codes] if form.table else codes - float(CENTRE[form.code])
        wide = [np.repeat(x.astype(np.float64), form.group, axis=1) for x in (scales, offsets)]
        return wide[0] * values + wide[1], abs(wide[0] * values) + abs(wide[1])
    blocks = bytes_.reshape(-1, form.block_bytes(inputs))
    raw = blocks.view({F32: np.float32, F16: np.float16}.get(form.code, np.uint16))
    wide = bfloat16(raw) if form.code in (BF16, BF16_DOT) else raw.astype(np.float64)
    pairs = 2 if form.code == BF16_DOT else 1
    w = wide.reshape(len(blocks), k // pairs, 64, pairs).transpose(0, 2, 1, 3).reshape(-1, k)
    return w, abs(w)


def coded(bytes_: NDArray[np.uint8], form: MatrixFormat, inputs: int) -> tuple[Codes, Halves, Halves]:
    """Codes [N, K], scales and offsets [N, groups] of a padded matrix."""
    k = form.padded(inputs)
    groups = bytes_.reshape(-1, k // form.group, form.block_bytes(inputs) * form.group // k)
    head = 256 if form.affine else 128
    numbers = groups[..., :head].copy().view(np.float16).reshape(*groups.shape[:2], -1, 64)
    scales, *rest = (
        numbers[:, :, i].transpose(0, 2, 1).reshape(-1, k // form.group) for i in range(head // 128)
    )
    codes = groups[..., head:]
    if form.four_bits:
        halves = codes.reshape(*groups.shape[:2], -1, 2, 16, 4)
        codes = np.stack([halves & 15, halves >> 4], 4)
    codes = codes.reshape(*groups.shape[:2], -1, 64, 4).transpose(0, 3, 1, 2, 4).reshape(-1, k)
    return codes, scales, rest[0] if rest else np.zeros_like(scales)


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
    fresh: bool,
) -> None:
    """`multiply` is code for other compiled code; this is the code."""
    multiply(
        kernel,
        w,
        table,
        x,
        x_stride,
        scales,
        sums,
        group_stride,
        out,
        out_stride,
        rows,
        inputs,
        group,
        fresh,
        w,
    )


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
