"""What happens to one row between two products: norms, rotation, activations, encoding.

Every function sees a single row and always sums in the same order, so a row's bits do not depend on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import erf, sqrt
from typing import Any

import numpy as np
from llvmlite import ir

from lightwork.kernels.cpu.compiled import (
    bfloat_bits,
    bfloat_value,
    compiled,
    half_value,
    intrinsic,
    summing,
    types,
)
from lightwork.kernels.cpu.formats import PARTS, SHORT
from lightwork.kernels.cpu.vectors import (
    FLOAT,
    FLOATS,
    HALF,
    I8,
    I16,
    I32,
    I64,
    INTS,
    LANES,
    Builder,
    Value,
    at,
    call,
    float_splat,
    fold,
    int_splat,
    lanes,
    largest,
    load,
    loop,
    magnitude,
    narrow_bf16,
    splat,
    store,
    widen_bf16,
)

LOG2_E = np.float32(1.4426950408889634)
SILU, GELU, GELU_NEW, GELU_TANH, RELU = range(5)

EXP2 = tuple(np.log(2.0) ** i / np.prod(np.arange(1.0, i + 1)) for i in range(7))
"""Taylor coefficients of 2^f: 1e-7 of the value for |f| <= 1/2."""


@intrinsic
def exp2(typing: Any, x: Any) -> Any:
    """2^x of a float32, 0 below the smallest normal number; plain operations that vectorise."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        low, high = FLOAT(-126.0), FLOAT(127.0)
        inside = call(b, "llvm.maxnum.f32", FLOAT, [args[0], low])
        inside = call(b, "llvm.minnum.f32", FLOAT, [inside, high])
        whole = call(b, "llvm.floor.f32", FLOAT, [b.fadd(inside, FLOAT(0.5))])
        part = b.fsub(inside, whole)
        power = FLOAT(float(np.float32(EXP2[-1])))
        for coefficient in reversed(EXP2[:-1]):
            power = call(b, "llvm.fma.f32", FLOAT, [power, part, FLOAT(float(np.float32(coefficient)))])
        bits = b.add(b.bitcast(power, I32), b.shl(b.fptosi(whole, I32), I32(23)))
        return b.select(b.fcmp_ordered("<", args[0], low), FLOAT(0.0), b.bitcast(bits, FLOAT))

    return types.float32(types.float32), generate


@compiled
def widen(bits: Any, half: int, out: Any) -> None:
    """Bits of bfloat16 (half 0) or float16 (1) as float32."""
    whole = out.shape[0] // LANES
    if whole and half:
        _widen_halves(bits.ctypes.data, out.ctypes.data, whole)
    elif whole:
        _widen_bfloats(bits.ctypes.data, out.ctypes.data, whole)
    for k in range(whole * LANES, out.shape[0]):
        out[k] = half_value(bits[k]) if half else bfloat_value(bits[k])


def _widen_all(kind: Any) -> Any:
    """An intrinsic: 16 * vectors float16 (kind HALF) or bfloat16 to float32."""

    @intrinsic
    def widen_all(typing: Any, bits: Any, out: Any, vectors: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            def body(i: Value, carried: Sequence[Value]) -> list[Value]:
                place = at(b, args[0], b.shl(i, I64(5)))
                if kind is HALF:
                    value = b.fpext(load(b, place, lanes(HALF)), FLOATS)
                else:
                    value = widen_bf16(b, load(b, place, lanes(I16)))
                store(b, value, at(b, args[1], b.shl(i, I64(6))))
                return []

            loop(b, args[2], [], body)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return widen_all


_widen_halves, _widen_bfloats = _widen_all(HALF), _widen_all(I16)


@summing
def rms_norm(x: Any, weight: Any, eps: Any, out: Any) -> None:
    """out = x / rms(x) * weight (Zhang and Sennrich, 2019)."""
    total = np.float32(0)
    for k in range(x.shape[0]):
        total += x[k] * x[k]
    inverse = np.float32(1) / np.sqrt(total / np.float32(x.shape[0]) + eps)
    for k in range(x.shape[0]):
        out[k] = x[k] * inverse * weight[k]


@summing
def layer_norm(x: Any, weight: Any, bias: Any, eps: Any, out: Any) -> None:
    """out = (x - mean) / deviation * weight + bias (Ba, Kiros and Hinton, 2016)."""
    size = np.float32(x.shape[0])
    mean, square = np.float32(0), np.float32(0)
    for k in range(x.shape[0]):
        mean += x[k]
    mean /= size
    for k in range(x.shape[0]):
        square += (x[k] - mean) * (x[k] - mean)
    inverse = np.float32(1) / np.sqrt(square / size + eps)
    for k in range(x.shape[0]):
        out[k] = (x[k] - mean) * inverse * weight[k] + bias[k]


@compiled
def rotate(x: Any, cosines: Any, sines: Any) -> None:
    """Rotate the pairs (i, i + D/2) of one head."""
    half = cosines.shape[0]
    first, second = x[:half], x[half:]
    for i in range(half):
        turned = first[i] * cosines[i] - second[i] * sines[i]
        second[i] = second[i] * cosines[i] + first[i] * sines[i]
        first[i] = turned


@compiled
def activate(kind: int, x: Any, out: Any) -> None:
    """out = activation(x), by their order in state.ACTIVATIONS."""
    one = np.float32(1)
    if kind == SILU:
        for k in range(x.shape[0]):
            out[k] = x[k] / (one + exp2(-LOG2_E * x[k]))
    elif kind == RELU:
        for k in range(x.shape[0]):
            out[k] = max(x[k], np.float32(0))
    elif kind == GELU:
        for k in range(x.shape[0]):
            out[k] = np.float32(0.5 * x[k] * (1.0 + erf(x[k] / sqrt(2.0))))
    else:
        for k in range(x.shape[0]):
            inner = np.float32(0.7978845608028654) * (x[k] + np.float32(0.044715) * x[k] * x[k] * x[k])
            # x * (1 + tanh(inner)) / 2 is x times the logistic function of 2 * inner.
            out[k] = x[k] / (one + exp2(np.float32(-2) * LOG2_E * inner))


@compiled
def to_bfloat16(x: Any, out: Any) -> None:
    """Round a row to bfloat16; what follows it in out becomes 0."""
    whole = x.shape[0] // LANES
    if whole:
        _halves(x.ctypes.data, out.ctypes.data, whole)
    for k in range(whole * LANES, x.shape[0]):
        out[k] = bfloat_bits(x[k])
    for k in range(x.shape[0], out.shape[0]):
        out[k] = 0


@compiled
def to_bfloat16_parts(x: Any, out: Any) -> None:
    """A row as three rows of bfloat16, each the nearest to what is left: their sum has all bits of x.

    out: the rows one after the other. In each, an even number is written: after an odd x a 0.
    """
    size, width = x.shape[0], out.shape[0] // PARTS
    whole = size // LANES
    if whole:
        _parts(x.ctypes.data, out.ctypes.data, 2 * width, whole)
    for part in range(PARTS):
        for k in range(whole * LANES, size + size % 2):
            out[part * width + k] = 0
    for k in range(whole * LANES, size):
        left = x[k]
        for part in range(PARTS):
            bits = bfloat_bits(left)
            out[part * width + k] = bits
            left -= bfloat_value(bits)


@intrinsic
def _parts(typing: Any, x: Any, out: Any, stride: Any, vectors: Any) -> Any:
    """16 * vectors float32 to rows of bfloat16, stride bytes apart."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        def body(i: Value, carried: Sequence[Value]) -> list[Value]:
            left = load(b, at(b, args[0], b.shl(i, I64(6))), FLOATS, 4)
            place = at(b, args[1], b.shl(i, I64(5)))
            for part in range(PARTS):
                halves = narrow_bf16(b, left)
                store(b, halves, at(b, place, b.mul(args[2], I64(part))))
                left = b.fsub(left, widen_bf16(b, halves))
            return []

        loop(b, args[3], [], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def _halves(typing: Any, x: Any, out: Any, vectors: Any) -> Any:
    """16 * vectors float32 to bfloat16."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        def body(i: Value, carried: Sequence[Value]) -> list[Value]:
            value = load(b, at(b, args[0], b.shl(i, I64(6))), FLOATS, 4)
            store(b, narrow_bf16(b, value), at(b, args[1], b.shl(i, I64(5))))
            return []

        loop(b, args[2], [], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@compiled
def to_bytes(x: Any, group: int, out: Any, scales: Any, sums: Any) -> None:
    """A row as int8 with a scale per group, whose largest value becomes 127, and the groups' sums.

    group: a multiple of 16. What follows the row in out becomes 0.
    """
    whole = x.shape[0] // group
    for g in range(whole):
        place = x.ctypes.data + 4 * g * group
        most = _largest_magnitude(place, group // LANES)
        scales[g] = most / np.float32(127)
        inverse = np.float32(127) / most if most > 0 else np.float32(0)
        sums[g] = _bytes(place, out.ctypes.data + g * group, group // LANES, inverse)
    for g in range(whole, scales.shape[0]):
        _to_bytes(x[g * group :], out[g * group :], scales[g:], sums[g:])


@compiled
def _to_bytes(part: Any, codes: Any, scales: Any, sums: Any) -> None:
    """The last group of a row, which may be shorter than a group."""
    most, total = np.float32(0), np.int32(0)
    for k in range(part.shape[0]):
        most = max(most, abs(part[k]))
    inverse = np.float32(127) / most if most > 0 else np.float32(0)
    for k in range(codes.shape[0]):
        code = np.int32(np.rint(part[k] * inverse)) if k < part.shape[0] else np.int32(0)
        codes[k] = code
        total += code
    scales[0], sums[0] = most / np.float32(127), total


@compiled
def to_shorts(x: Any, out: Any) -> Any:
    """A row as int16 whose largest magnitude becomes SHORT; returns what one of them stands for."""
    size, whole = x.shape[0], x.shape[0] // LANES
    most = _largest_magnitude(x.ctypes.data, whole) if whole else np.float32(0)
    for k in range(whole * LANES, size):
        most = max(most, abs(x[k]))
    inverse = np.float32(SHORT) / most if most > 0 else np.float32(0)
    if whole:
        _shorts(x.ctypes.data, out.ctypes.data, whole, inverse)
    for k in range(whole * LANES, size):
        out[k] = np.int32(np.rint(x[k] * inverse))
    return most / np.float32(SHORT)


@intrinsic
def _largest_magnitude(typing: Any, x: Any, vectors: Any) -> Any:
    """The largest magnitude of 16 * vectors float32."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        def body(i: Value, carried: Sequence[Value]) -> list[Value]:
            value = load(b, at(b, args[0], b.shl(i, I64(6))), FLOATS, 4)
            return [largest(b, carried[0], magnitude(b, value))]

        (most,) = loop(b, args[1], [float_splat(0.0)], body)
        return fold(b, most, partial(largest, b))

    return types.float32(types.int64, types.int64), generate


def _rounded_to(kind: ir.IntType) -> Any:
    """An intrinsic: 16 * vectors float32 times inverse, rounded to integers; returns their sum."""

    @intrinsic
    def rounded(typing: Any, x: Any, out: Any, vectors: Any, inverse: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            factor = splat(b, args[3])

            def body(i: Value, carried: Sequence[Value]) -> list[Value]:
                value = b.fmul(load(b, at(b, args[0], b.shl(i, I64(6))), FLOATS, 4), factor)
                code = b.fptosi(call(b, "llvm.rint.v16f32", FLOATS, [value]), INTS)
                store(b, b.trunc(code, lanes(kind)), at(b, args[1], b.mul(i, I64(LANES * kind.width // 8))))
                return [b.add(carried[0], code)]

            (total,) = loop(b, args[2], [int_splat(0)], body)
            return fold(b, total, b.add)

        return types.int32(types.int64, types.int64, types.int64, types.float32), generate

    return rounded


_bytes, _shorts = _rounded_to(I8), _rounded_to(I16)


@summing
def group_sums(x: Any, group: int, sums: Any) -> None:
    """The sum of each group of a row."""
    for g in range(sums.shape[0]):
        part = x[g * group : min(x.shape[0], (g + 1) * group)]
        total = np.float32(0)
        for k in range(part.shape[0]):
            total += part[k]
        sums[g] = total
