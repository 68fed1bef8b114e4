"""The micro-kernel: some rows times one block of weights, added to what is there.

    out[m, n] += sum over k of x[m, k] * w[k, n]        m < rows, n < 16 * vectors; = where it is fresh

Weights lie in the order they are read, one input (or two, or four) after another, each for all outputs of
the block: memory is read as one stream. It is emitted for a format and this processor, in vectors (lanes.py)
or in matrix registers (amx.py), and called by its address.

Formats, by what is multiplied:
  F32 BF16 F16 INT8   weights widened to float32, times float32
  BF16_DOT         pairs of bfloat16, times bfloat16, added in float32
  CODE8 CODE4      codes of a group of inputs widened (4 bits: any table of 16 values), times float32;
                   the group's scale is applied to its sum, and an offset, if there is one, to the inputs' sum
  CODE8_DOT CODE4_DOT   the same codes times bytes with a scale per row and group, added in int32: exact
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from llvmlite import ir

from lightwork.kernels.cpu import amx, lanes
from lightwork.kernels.cpu.compiled import compile_module, intrinsic, types
from lightwork.kernels.cpu.isa import Isa, host
from lightwork.kernels.cpu.vectors import I64, Builder, Value

NUM_ARGS = 13


@cache
def kernel(form: int, *, vectors: int = 4, affine: bool = False, isa: Isa | None = None) -> int:
    """The address of a format's compiled micro-kernel, for `multiply`. isa: this processor's, by default."""
    module = ir.Module(name=f"tile_{form}_{vectors}_{affine}")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * NUM_ARGS), "multiply")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    values: list[Value] = list(function.args)
    fixed = (form, host() if isa is None else isa, 0, vectors, affine)
    *addresses, rows, inputs, group, fresh = values
    emission = lanes.Emission._make(
        [*fixed, *addresses, inputs, group, b.trunc(fresh, ir.IntType(1)), I64(0)]
    )
    by_rows = amx.by_rows if amx.computes(emission) else lanes.by_rows
    by_rows(b, emission, rows)
    b.ret_void()
    return compile_module(module, "multiply")


@intrinsic
def multiply(
    typing: Any,
    kernel: Any,
    weights: Any,
    table: Any,
    x: Any,
    x_stride: Any,
    x_scales: Any,
    x_sums: Any,
    group_stride: Any,
    out: Any,
    out_stride: Any,
    rows: Any,
    inputs: Any,
    group: Any,
    fresh: Any,
) -> Any:
    """out += x @ weights for any number of rows, by the kernel at an address.

    weights: address of the block; a group of codes is preceded by its float16 scales [64], and offsets [64]
    if affine. table: float32 [16] of CODE4. x: rows, x_stride bytes apart, in the type the format multiplies.
    x_scales float32, x_sums (int32 for *_DOT, else float32) per group, rows group_stride bytes apart.
    out: float32, overwritten if fresh. inputs: k, at least 1, a multiple of group where there are groups.
    """

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        kind = ir.FunctionType(ir.VoidType(), [I64] * NUM_ARGS)
        b.call(b.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*([types.int64] * (NUM_ARGS + 1))), generate
