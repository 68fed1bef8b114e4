"""What happens to one row between two products: norms, rotation, activations, encoding.

Every function sees a single row and always sums in the same order, so a row's bits do not depend on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import erf, sqrt
from typing import Any

import numpy as np

from lightwork.kernels.cpu.compiled import (
    bfloat_bits,
    bfloat_value,
    compiled,
    half_value,
    intrinsic,
    summing,
    types,
)
from lightwork.kernels.cpu.vectors import FLOAT, I32, Builder, Value, call

LOG2_E = np.float32(1.4426950408889634)
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
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
def embed_bits(row: Any, half: int, out: Any) -> None:
    """A row of bfloat16 (half 0) or float16 (1) bits as float32."""
    for k in range(out.shape[0]):
        out[k] = half_value(row[k]) if half else bfloat_value(row[k])


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
    """out = activation(x), by the names of ACTIVATIONS."""
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
    for k in range(x.shape[0]):
        out[k] = bfloat_bits(x[k])
    for k in range(x.shape[0], out.shape[0]):
        out[k] = 0


@summing
def to_bytes(x: Any, group: int, out: Any, scales: Any, sums: Any) -> None:
    """A row as int8 with a scale per group, whose largest value becomes 127, and the groups' sums."""
    size = x.shape[0]
    for g in range(scales.shape[0]):
        part = x[g * group : min(size, (g + 1) * group)]
        codes = out[g * group : (g + 1) * group]
        most = np.float32(0)
        for k in range(part.shape[0]):
            most = max(most, abs(part[k]))
        scales[g] = most / np.float32(127)
        inverse = np.float32(127) / most if most > 0 else np.float32(0)
        total = np.int32(0)
        for k in range(part.shape[0]):
            code = np.int32(np.rint(part[k] * inverse))
            codes[k] = code
            total += code
        for k in range(part.shape[0], codes.shape[0]):
            codes[k] = 0
        sums[g] = total


@summing
def group_sums(x: Any, group: int, sums: Any) -> None:
    """The sum of each group of a row."""
    for g in range(sums.shape[0]):
        part = x[g * group : min(x.shape[0], (g + 1) * group)]
        total = np.float32(0)
        for k in range(part.shape[0]):
            total += part[k]
        sums[g] = total
