"""The vocabulary of the emitters: sixteen-lane vectors as LLVM IR, addresses as int64.

A kernel is a Python function that builds IR: its Python loops are unrolled in the emitted code, `loop` is a
loop of the emitted code. LLVM lowers sixteen lanes to one register of AVX-512, two of AVX2, four of NEON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

LANES = 16


class _BFloatType(ir.Type):  # type: ignore[misc]
    """bfloat16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloatType)

    def __hash__(self) -> int:
        return hash(_BFloatType)


I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, HALF, BFLOAT = ir.FloatType(), ir.HalfType(), _BFloatType()
FLOATS = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(I32, LANES)
BYTES = ir.VectorType(I8, 4 * LANES)
PAIRS = ir.VectorType(BFLOAT, 2 * LANES)

Value = Any
Builder = Any


def float_splat(value: float) -> Value:
    return ir.Constant(FLOATS, [value] * LANES)


def int_splat(value: int) -> Value:
    return ir.Constant(INTS, [value - (1 << 32) if value >= 1 << 31 else value] * LANES)


def call(b: Builder, name: str, result: Any, args: Sequence[Value]) -> Value:
    """Call an LLVM intrinsic or a C function by name."""
    fn = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(result, [a.type for a in args]), name
    )
    return b.call(fn, args)


def at(b: Builder, address: Value, offset: int | Value) -> Value:
    """address + offset bytes."""
    if isinstance(offset, int):
        return address if offset == 0 else b.add(address, I64(offset))
    return b.add(address, offset)


def load(b: Builder, address: Value, kind: Any, align: int = 1) -> Value:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def store(b: Builder, value: Value, address: Value) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def lanes(kind: Any) -> Any:
    return ir.VectorType(kind, LANES)


def splat(b: Builder, scalar: Value) -> Value:
    """Sixteen copies of a scalar."""
    kind = lanes(scalar.type)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(INTS, [0] * LANES))


def fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once."""
    return call(b, "llvm.fma.v16f32", FLOATS, [x, y, z])


def widen_bf16(b: Builder, halves: Value) -> Value:
    """Sixteen bfloat16, as int16 lanes, to float32: exact."""
    return b.bitcast(b.shl(b.zext(halves, INTS), int_splat(16)), FLOATS)


def narrow_bf16(b: Builder, x: Value) -> Value:
    """Sixteen float32 rounded to the nearest bfloat16, as int16 lanes."""
    return b.bitcast(b.fptrunc(x, lanes(BFLOAT)), lanes(I16))


def magnitude(b: Builder, x: Value) -> Value:
    return b.bitcast(b.and_(b.bitcast(x, INTS), int_splat(0x7FFFFFFF)), FLOATS)


def largest(b: Builder, x: Value, y: Value) -> Value:
    return call(b, "llvm.maxnum.v16f32", FLOATS, [x, y])


def prefetch(b: Builder, address: Value, cache: int = 1) -> None:
    """Ask for a cache line, into the first or second cache. An address that is nobody's does no harm."""
    pointer = b.inttoptr(address, I8.as_pointer())
    call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32(0), I32(4 - cache), I32(1)])


def fold(b: Builder, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """Combine the lanes of a vector pairwise, in a fixed order, into a scalar."""
    for half in (8, 4, 2, 1):
        index = [(i + half) % LANES for i in range(LANES)]
        turned = b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(INTS, index))
        vector = combine(vector, turned)
    return b.extract_element(vector, I32(0))


def loop(
    b: Builder,
    count: Value,
    carried: Sequence[Value],
    body: Callable[[Value, Sequence[Value]], Sequence[Value]],
) -> list[Value]:
    """`for i in range(count): carried = body(i, carried)` for a count of at least 1; returns carried."""
    before = b.block
    top, after = b.append_basic_block("loop"), b.append_basic_block("after")
    b.branch(top)
    b.position_at_end(top)
    i = b.phi(I64)
    i.add_incoming(I64(0), before)
    phis = []
    for value in carried:
        phi = b.phi(value.type)
        phi.add_incoming(value, before)
        phis.append(phi)
    results = list(body(i, phis))
    following = b.add(i, I64(1))
    last = b.block
    i.add_incoming(following, last)
    for phi, value in zip(phis, results, strict=True):
        phi.add_incoming(value, last)
    b.cbranch(b.icmp_signed("<", following, count), top, after)
    b.position_at_end(after)
    return results
