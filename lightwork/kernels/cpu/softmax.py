"""Vector code of attention's scores: weights from scores, hidden keys, lines fetched ahead."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from lightwork.kernels.cpu.compiled import intrinsic, types
from lightwork.kernels.cpu.isa import Isa, host
from lightwork.kernels.cpu.rowwise import EXP2
from lightwork.kernels.cpu.vectors import (
    FLOAT,
    FLOATS,
    I32,
    I64,
    INTS,
    Builder,
    Value,
    at,
    call,
    float_splat,
    fma,
    fold,
    int_splat,
    largest,
    load,
    loop,
    narrow_bf16,
    splat,
    store,
)

HIDDEN = np.float32(-1e30)
"""The score of a key that a row does not see."""

EXP2_COARSE = (0.99992807, 0.693261, 0.24261112, 0.05517159)
"""The cubic that is nearest to 2^f for |f| <= 1/2: 7.5e-5 of its value, where bfloat16 has 4e-3."""
CURRENT_ROUNDING = 4


ROWS_TOGETHER = 4
"""Rows whose chains of operations a processor overlaps."""


def _weigh_all(halves: bool) -> Any:
    """An intrinsic: the weights of some rows of scores.

    A row of 16 * vectors scores becomes exp2(score - largest), in place, or in bfloat16 at `out`; its largest
    score and the total of its weights become its pair of sums.
    """

    @intrinsic
    def weigh_all(
        typing: Any, scores: Any, stride: Any, rows: Any, vectors: Any, out: Any, out_stride: Any, sums: Any
    ) -> Any:
        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            table = _Rows._make(args)
            whole = b.sdiv(table.rows, I64(ROWS_TOGETHER))
            done = b.mul(whole, I64(ROWS_TOGETHER))
            for count, times, first in (
                (ROWS_TOGETHER, whole, I64(0)),
                (1, b.sub(table.rows, done), done),
            ):
                with b.if_then(b.icmp_signed(">", times, I64(0))):
                    loop(b, times, [], partial(_weigh_rows, b, table, count, first, halves))
            return context.get_dummy_value()

        return types.void(*([types.int64] * 7)), generate

    return weigh_all


class _Rows(NamedTuple):
    """Addresses, strides in bytes, and counts of rows of scores."""

    scores: Value
    stride: Value
    rows: Value
    vectors: Value
    out: Value
    out_stride: Value
    sums: Value


def _weigh_rows(
    b: Builder, t: _Rows, count: int, first: Value, halves: bool, i: Value, _: Sequence[Value]
) -> list[Value]:
    row = b.add(first, b.mul(i, I64(count)))
    scores = [b.add(t.scores, b.mul(b.add(row, I64(m)), t.stride)) for m in range(count)]
    outs = [b.add(t.out, b.mul(b.add(row, I64(m)), t.out_stride)) for m in range(count)]

    def most_of(v: Value, most: Sequence[Value]) -> list[Value]:
        found = [load(b, b.add(at_row, b.shl(v, I64(6))), FLOATS, 4) for at_row in scores]
        return [largest(b, m, x) for m, x in zip(most, found, strict=True)]

    vectors = loop(b, t.vectors, [float_splat(float(HIDDEN))] * count, most_of)
    most = [fold(b, m, partial(largest, b)) for m in vectors]
    # A row that sees no key here: any shift makes every weight zero.
    hidden = [b.fcmp_ordered("<=", m, FLOAT(float(HIDDEN))) for m in most]
    down = [splat(b, b.select(h, FLOAT(0.0), m)) for h, m in zip(hidden, most, strict=True)]

    def weights_of(v: Value, totals: Sequence[Value]) -> list[Value]:
        values = []
        for m in range(count):
            place = b.add(scores[m], b.shl(v, I64(6)))
            value = exp2_vector(b, b.fsub(load(b, place, FLOATS, 4), down[m]), halves, host())
            if halves:
                store(b, narrow_bf16(b, value), b.add(outs[m], b.shl(v, I64(5))))
            else:
                store(b, value, place)
            values.append(value)
        return [b.fadd(total, value) for total, value in zip(totals, values, strict=True)]

    totals = loop(b, t.vectors, [float_splat(0.0)] * count, weights_of)
    for m in range(count):
        pair = b.add(t.sums, b.shl(b.add(row, I64(m)), I64(3)))
        store(b, most[m], pair)
        store(b, fold(b, totals[m], b.fadd), at(b, pair, 4))
    return []


weigh_floats, weigh_halves = _weigh_all(False), _weigh_all(True)


def exp2_vector(b: Builder, x: Value, coarse: bool, isa: Isa) -> Value:
    """2^x for x <= 0, and 0 far below the smallest normal number. coarse: enough for bfloat16."""
    whole = call(b, "llvm.rint.v16f32", FLOATS, [x])
    part = b.fsub(x, whole)
    coefficients = EXP2_COARSE if coarse else EXP2
    power = float_splat(float(np.float32(coefficients[-1])))
    for coefficient in reversed(coefficients[:-1]):
        power = fma(b, power, part, float_splat(float(np.float32(coefficient))))
    if isa.scale:
        name, mask = "llvm.x86.avx512.mask.scalef.ps.512", ir.IntType(16)
        return call(b, name, FLOATS, [power, whole, float_splat(0.0), mask(-1), I32(CURRENT_ROUNDING)])
    low = float_splat(-126.0)
    bits = b.add(b.bitcast(power, INTS), b.shl(b.fptosi(largest(b, whole, low), INTS), int_splat(23)))
    return b.select(b.fcmp_ordered("<", whole, low), float_splat(0.0), b.bitcast(bits, FLOATS))


@intrinsic
def hide(typing: Any, address: Any, visible: Any) -> Any:
    """Give 64 scores whose bit in `visible` is not set the score of a hidden key."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        for v in range(4):
            place = at(b, args[0], 64 * v)
            bits = b.trunc(b.lshr(args[1], I64(16 * v)), ir.IntType(16))
            shown = b.bitcast(bits, ir.VectorType(ir.IntType(1), 16))
            store(b, b.select(shown, load(b, place, FLOATS, 4), float_splat(float(HIDDEN))), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate
