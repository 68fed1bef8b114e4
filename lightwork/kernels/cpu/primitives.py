"""What compiled functions use of memory and of other machine code, by address.

Arrays are views that nobody owns: a step allocates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from lightwork.kernels.cpu.compiled import compiled, intrinsic, numba, types
from lightwork.kernels.cpu.state import RECORD
from lightwork.kernels.cpu.tile import NUM_ARGS
from lightwork.kernels.cpu.vectors import I64, Builder, Value

_record = numba.from_dtype(RECORD)


@intrinsic
def record_at(typing: Any, address: Any) -> Any:
    """The record of a State, at its address."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        return b.inttoptr(args[0], context.get_value_type(_record))

    return _record(types.int64), generate


def _view(kind: Any, name: str) -> Any:
    """An intrinsic: (address, count) -> array of `kind`, one-dimensional, owned by nobody."""

    @intrinsic
    def view(typing: Any, address: Any, count: Any) -> Any:
        array = types.Array(kind, 1, "C")

        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            made = context.make_array(array)(context, b)
            size = context.get_abi_sizeof(context.get_value_type(kind))
            context.populate_array(
                made,
                data=b.inttoptr(args[0], made.data.type),
                shape=[args[1]],
                strides=[I64(size)],
                itemsize=I64(size),
                meminfo=None,
            )
            return made._getvalue()

        return array(types.int64, types.int64), generate

    view.__doc__ = f"{name} [count] at an address."
    return view


def _element(kind: Any, name: str) -> Any:
    """An intrinsic: (address, i) -> the i-th number there."""

    @intrinsic
    def element(typing: Any, address: Any, i: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            pointer = b.inttoptr(args[0], context.get_value_type(types.CPointer(kind)))
            return b.load(b.gep(pointer, [args[1]]))

        return kind(types.int64, types.int64), generate

    element.__doc__ = f"The i-th {name} at an address."
    return element


doubles, floats = _view(types.float64, "float64"), _view(types.float32, "float32")
shorts, signed_bytes = _view(types.uint16, "uint16"), _view(types.int8, "int8")
ints, int32s = _view(types.int64, "int64"), _view(types.int32, "int32")
int_at, bits_at = _element(types.int64, "int64"), _element(types.uint64, "uint64")


@compiled
def copy(source: Any, out: Any) -> None:
    """out = source: an assignment to a slice would allocate, in case the two overlap."""
    for k in range(out.shape[0]):
        out[k] = source[k]


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
    ahead: Any,
) -> Any:
    """out += x @ weights for any number of rows, by the kernel at an address.

    weights: address of the block; a group of codes is preceded by its float16 scales [64], and offsets [64]
    if affine. table: float32 [16] of CODE4. x: rows, x_stride bytes apart, in the type the format multiplies.
    x_scales float32, x_sums (int32 for *_DOT, else float32) per group, rows group_stride bytes apart.
    out: float32, overwritten if fresh. inputs: k, at least 1, a multiple of group where there are groups.
    ahead: address of as many bytes as the block has, which are wanted next; of pages only.
    """

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        kind = ir.FunctionType(ir.VoidType(), [I64] * NUM_ARGS)
        b.call(b.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*([types.int64] * (NUM_ARGS + 1))), generate
