"""Vector code of attention's scores: the largest, weights from scores, hidden keys, lines fetched ahead."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from lightwork.kernels.cpu.compiled import intrinsic, types
from lightwork.kernels.cpu.rowwise import EXP2
from lightwork.kernels.cpu.vectors import (
    FLOATS,
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
    prefetch,
    splat,
    store,
)

HIDDEN = np.float32(-1e30)
"""The score of a key that a row does not see."""


@intrinsic
def largest_of(typing: Any, address: Any, vectors: Any) -> Any:
    """The largest of 16 * vectors float32."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        def body(i: Value, carried: Sequence[Value]) -> list[Value]:
            return [largest(b, carried[0], load(b, at(b, args[0], b.shl(i, I64(6))), FLOATS, 4))]

        (most,) = loop(b, args[1], [float_splat(float(HIDDEN))], body)
        return fold(b, most, partial(largest, b))

    return types.float32(types.int64, types.int64), generate


def _exp2_all(halves: bool) -> Any:
    """An intrinsic: exp2(x - shift) of 16 * vectors float32, in place or to bfloat16; returns their sum."""

    @intrinsic
    def exp2_all(typing: Any, address: Any, vectors: Any, shift: Any, out: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            down = splat(b, args[2])

            def body(i: Value, carried: Sequence[Value]) -> list[Value]:
                place = at(b, args[0], b.shl(i, I64(6)))
                value = _exp2_vector(b, b.fsub(load(b, place, FLOATS, 4), down))
                if halves:
                    store(b, narrow_bf16(b, value), at(b, args[3], b.shl(i, I64(5))))
                else:
                    store(b, value, at(b, args[3], b.shl(i, I64(6))))
                return [b.fadd(carried[0], value)]

            (total,) = loop(b, args[1], [float_splat(0.0)], body)
            return fold(b, total, b.fadd)

        return types.float32(types.int64, types.int64, types.float32, types.int64), generate

    return exp2_all


exp2_floats, exp2_halves = _exp2_all(False), _exp2_all(True)


def _exp2_vector(b: Builder, x: Value) -> Value:
    """2^x for x <= 0, and 0 where it is below the smallest normal number."""
    low = float_splat(-126.0)
    inside = largest(b, x, low)
    whole = call(b, "llvm.floor.v16f32", FLOATS, [b.fadd(inside, float_splat(0.5))])
    part = b.fsub(inside, whole)
    power = float_splat(float(np.float32(EXP2[-1])))
    for coefficient in reversed(EXP2[:-1]):
        power = fma(b, power, part, float_splat(float(np.float32(coefficient))))
    bits = b.add(b.bitcast(power, INTS), b.shl(b.fptosi(whole, INTS), int_splat(23)))
    return b.select(b.fcmp_ordered("<", x, low), float_splat(0.0), b.bitcast(bits, FLOATS))


@intrinsic
def fetch(typing: Any, address: Any, lines: Any) -> Any:
    """Ask for some cache lines. Pages lie anywhere, so the processor cannot foresee the next one."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        def body(i: Value, carried: Sequence[Value]) -> list[Value]:
            prefetch(b, at(b, args[0], b.shl(i, I64(6))))
            return []

        loop(b, args[1], [], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


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
