"""The micro-kernel in matrix registers (AMX): sixteen rows times sixteen outputs an instruction.

The layouts of weights are those of lanes.py: what a vector of weights holds is a row of a register here.
A product of bfloat16 goes over 32 inputs at once, the even and the odd of which the processor adds up
apart; calls that cut the inputs must cut at multiples of 32 then, and inputs after the last 32 are left to
lanes.py. A few rows of a page are added up in vectors, in that same order; the bits are the same but for
numbers below the smallest normal one (1e-38), which are zero to the registers. Products of bytes are exact,
so few rows are left to lanes.py too, with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llvmlite import ir

from lightwork.kernels.cpu import lanes
from lightwork.kernels.cpu.formats import BF16_DOT, CENTRE, CODE4_DOT, CODE8_DOT
from lightwork.kernels.cpu.lanes import Emission
from lightwork.kernels.cpu.vectors import (
    FLOAT,
    FLOATS,
    I8,
    I32,
    I64,
    INTS,
    LANES,
    Builder,
    Value,
    at,
    call,
    fma,
    int_splat,
    load,
    loop,
    prefetch,
    splat,
    store,
)

STEP = 32
"""bfloat16 inputs of one product."""
BYTES_AHEAD = 8192
"""How far ahead weights are fetched: a load of a register asks for sixteen lines, too late for memory."""
FEWEST_ROWS = 8
"""From so many rows of bytes on, matrix registers are faster."""
MOST_ROWS_IN_LANES = 4
"""Up to so many rows of bfloat16, vectors are faster in short calls: registers take long to set up."""

VOID = ir.VoidType()


def computes(e: Emission) -> bool:
    """Whether this processor multiplies a format in matrix registers."""
    return e.isa.matrix and (e.format == BF16_DOT or (e.format in (CODE8_DOT, CODE4_DOT) and e.vectors == 4))


def by_rows(b: Builder, e: Emission, rows: Value) -> None:
    """Emit the product of any number of rows."""
    if e.format == BF16_DOT:
        _pairs(b, e, rows)
        return
    with b.if_else(b.icmp_signed("<", rows, I64(FEWEST_ROWS))) as (few, many):
        with few:
            lanes.by_rows(b, e, rows)
        with many:
            _codes(b, e, rows)


def _set_shapes(b: Builder, name: str, shapes: Sequence[Sequence[tuple[int, int]]], which: Value) -> None:
    """Give the registers one of some shapes, (rows, bytes of a row) of each. They are zero afterwards.

    The shapes are constants of the module: written just before, they would be waited for.
    """
    kind = ir.ArrayType(I8, 64 * len(shapes))
    table = b.module.globals.get(name)
    if table is None:
        table = ir.GlobalVariable(b.module, kind, name)
        table.global_constant, table.align = True, 64
        table.initializer = ir.Constant(kind, bytearray(b"".join(_shape_bytes(s) for s in shapes)))
    place = b.add(b.ptrtoint(table, I64), b.shl(which, I64(6)))
    call(b, "llvm.x86.ldtilecfg", VOID, [_pointer(b, place)])


def _shape_bytes(shape: Sequence[tuple[int, int]]) -> bytes:
    """As the processor reads it: palette, bytes of a row as 16 bits from byte 16 on, rows from byte 48 on."""
    if not all(rows for rows, _ in shape):  # of no rows at all: never used
        return bytes(64)
    widths = b"".join(nbytes.to_bytes(2, "little") for _, nbytes in shape)
    return (
        bytes([1])
        + bytes(15)
        + widths
        + bytes(32 - len(widths))
        + bytes(rows for rows, _ in shape)
        + bytes(8)
    )


def _pointer(b: Builder, address: Value) -> Value:
    return b.inttoptr(address, I8.as_pointer())


def _zero(b: Builder, register: int) -> None:
    call(b, "llvm.x86.tilezero", VOID, [I8(register)])


def _load(b: Builder, register: int, address: Value, stride: Value) -> None:
    call(b, "llvm.x86.tileloadd64", VOID, [I8(register), _pointer(b, address), stride])


def _store(b: Builder, register: int, address: Value, stride: Value) -> None:
    call(b, "llvm.x86.tilestored64", VOID, [I8(register), _pointer(b, address), stride])


def _release(b: Builder) -> None:
    """Give the registers back, so that threads are switched without saving 8 KiB."""
    call(b, "llvm.x86.tilerelease", VOID, [])


# -- pairs of bfloat16


def _pairs(b: Builder, e: Emission, rows: Value) -> None:
    steps, rest = b.lshr(e.inputs, I64(5)), b.and_(e.inputs, I64(STEP - 1))
    whole = e._replace(inputs=steps)
    in_lanes = b.icmp_signed("<=", rows, I64(0 if e.streamed else MOST_ROWS_IN_LANES))
    with b.if_then(b.icmp_signed(">", steps, I64(0))), b.if_else(in_lanes) as (few, many):
        with few:
            lanes.by_rows(b, whole, rows, _in_lanes, (4, 2, 1))
        with many:
            _passes(b, whole, rows)
            _release(b)
    step_bytes = 2 * STEP * LANES * e.vectors
    left = e._replace(
        weights=b.add(e.weights, b.mul(steps, I64(step_bytes))),
        x=b.add(e.x, b.mul(steps, I64(2 * STEP))),
        ahead=b.add(e.ahead, b.mul(steps, I64(step_bytes))),
        inputs=rest,
    )
    with b.if_then(b.icmp_signed(">", rest, I64(0))):
        lanes.by_rows(b, left._replace(fresh=b.and_(e.fresh, b.icmp_signed("==", steps, I64(0)))), rows)


def _in_lanes(b: Builder, e: Emission) -> None:
    """A few rows in vectors, added in the order of matrix registers, so that bits do not depend on rows."""
    at_once = 2 if e.rows > 2 else e.vectors
    for first in range(0, e.vectors, at_once):
        cells = [(m, v) for m in range(e.rows) for v in range(first, min(first + at_once, e.vectors))]
        _sum_in_lanes(b, e, cells, first == 0)


def _sum_in_lanes(b: Builder, e: Emission, cells: Sequence[tuple[int, int]], cold: bool) -> None:
    """Sums of some (row, vector of outputs) over all inputs, counted in steps. cold: for the first time, so
    that what is wanted next is fetched meanwhile."""
    row_bytes = 4 * LANES * e.vectors
    wide = _room(b, 128 * e.rows)  # of each row the even inputs of a step, then the odd, as float32

    def step(i: Value, sums: Sequence[Value]) -> list[Value]:
        here = b.add(e.weights, b.mul(i, I64(row_bytes * STEP // 2)))
        for m in range(e.rows):
            pairs = load(b, b.add(e.x, b.add(b.mul(e.x_stride, I64(m)), b.shl(i, I64(6)))), INTS)
            for half, values in enumerate(_halves(b, pairs)):
                store(b, values, at(b, wide, 128 * m + 64 * half))

        def pair(k: Value, parts: Sequence[Value]) -> list[Value]:
            row = b.add(here, b.mul(k, I64(row_bytes)))
            for v in range(e.vectors if cold else 0):
                prefetch(b, at(b, b.add(e.ahead, b.sub(row, e.weights)), 64 * v), cache=2)
            weights = {v: _halves(b, load(b, at(b, row, 64 * v), INTS)) for v in {v for _, v in cells}}
            place = b.add(wide, b.shl(k, I64(2)))
            x = [
                [splat(b, load(b, at(b, place, 128 * m + 64 * h), FLOAT)) for h in (0, 1)]
                for m in range(e.rows)
            ]
            factors = [(weights[v][half], x[m][half]) for m, v in cells for half in (0, 1)]
            return [fma(b, w, value, part) for (w, value), part in zip(factors, parts, strict=True)]

        parts = loop(b, I64(STEP // 2), [splat(b, FLOAT(0.0))] * (2 * len(cells)), pair)
        return [b.fadd(total, b.fadd(*parts[2 * c : 2 * c + 2])) for c, total in enumerate(sums)]

    sums = [lanes.so_far(b, e.fresh, lanes.out_of(b, e, m, v)) for m, v in cells]
    for (m, v), total in zip(cells, loop(b, e.inputs, sums, step), strict=True):
        store(b, total, lanes.out_of(b, e, m, v))


def _halves(b: Builder, pairs: Value) -> list[Value]:
    """The first and the second of each pair of bfloat16, as float32."""
    both = [b.shl(pairs, int_splat(16)), b.and_(pairs, int_splat(0xFFFF0000))]
    return [b.bitcast(half, FLOATS) for half in both]


def _passes(b: Builder, e: Emission, rows: Value) -> None:
    """32 rows at a time, two registers of rows by two of outputs; up to 16 rows by all outputs at once."""
    tall = b.lshr(rows, I64(5))
    with b.if_then(b.icmp_signed(">", tall, I64(0))):
        _set_shapes(b, "rows", PAIR_SHAPES, I64(32))
        loop(b, tall, [], partial(_tall, b, e))
    done = b.shl(tall, I64(5))
    left = b.sub(rows, done)
    last = _moved(b, e, done)
    with b.if_then(b.icmp_signed(">", left, I64(0))):
        _set_shapes(b, "rows", PAIR_SHAPES, left)
        with b.if_else(b.icmp_signed(">", left, I64(16))) as (many, few):
            with many:
                _tall(b, last, I64(0), [])
            with few:
                _pass(b, last, 1, range(e.vectors), (5, 6, 7), ir.IntType(1)(1))


def _pair_shape(rows: int) -> list[tuple[int, int]]:
    """For so many rows, registers 0 to 3: sums, 4 and 5: rows, 6 and 7 (and 5 for up to 16 rows): weights."""
    upper, lower = min(rows, 16), max(rows - 16, 0)
    if lower:
        return [(n, 64) for n in (upper, upper, lower, lower, upper, lower, 16, 16)]
    return [(n, 64) for n in (*[upper] * 5, 16, 16, 16)]


PAIR_SHAPES = [_pair_shape(rows) for rows in range(33)]


def _moved(b: Builder, e: Emission, rows: Value) -> Emission:
    """The same from a later row on."""
    return e._replace(
        x=b.add(e.x, b.mul(rows, e.x_stride)),
        x_scales=b.add(e.x_scales, b.mul(rows, e.group_stride)),
        x_sums=b.add(e.x_sums, b.mul(rows, e.group_stride)),
        out=b.add(e.out, b.mul(rows, e.out_stride)),
    )


def _tall(b: Builder, e: Emission, i: Value, carried: Sequence[Value]) -> list[Value]:
    part = _moved(b, e, b.shl(i, I64(5)))
    first_rows = b.icmp_signed("==", i, I64(0))
    for first in range(0, e.vectors, 2):
        vectors = range(first, min(first + 2, e.vectors))
        _pass(b, part, 2, vectors, (6, 7), first_rows if first == 0 else None)
    return []


def _pass(
    b: Builder,
    e: Emission,
    row_registers: int,
    vectors: Sequence[int],
    weight_registers: Sequence[int],
    cold: Value | None,
) -> None:
    """Sums over all inputs (counted in steps) of one or two registers of rows and some vectors of outputs.

    cold: whether the weights are still in memory, so that they are fetched ahead; None: they never are.
    """
    sums = {(m, v): 2 * m + i for m in range(row_registers) for i, v in enumerate(vectors)}
    sixteen = b.shl(e.out_stride, I64(4))

    def out(m: int, v: int) -> Value:
        return at(b, b.add(e.out, b.mul(sixteen, I64(m))), 64 * v)

    with b.if_else(e.fresh) as (none, some):
        with none:
            for register in sums.values():
                _zero(b, register)
        with some:
            for (m, v), register in sums.items():
                _load(b, register, out(m, v), e.out_stride)
    row_bytes = 4 * LANES * e.vectors

    def step(i: Value, carried: Sequence[Value]) -> list[Value]:
        here = b.add(e.weights, b.mul(i, I64(row_bytes * STEP // 2)))
        x = b.add(e.x, b.shl(i, I64(6)))
        if cold is not None:
            with b.if_then(cold):
                ahead = at(b, here, BYTES_AHEAD) if e.streamed else b.add(e.ahead, b.sub(here, e.weights))
                for line in range(STEP // 2 * e.vectors):
                    prefetch(b, at(b, ahead, 64 * line), cache=1 if e.streamed else 2)
        for m in range(row_registers):
            _load(b, 4 + m, b.add(x, b.mul(b.shl(e.x_stride, I64(4)), I64(m))), e.x_stride)
        for i_v, v in enumerate(vectors):
            weights = weight_registers[i_v % len(weight_registers)]
            _load(b, weights, at(b, here, 64 * v), I64(row_bytes))
            for m in range(row_registers):
                call(b, "llvm.x86.tdpbf16ps", VOID, [I8(sums[m, v]), I8(4 + m), I8(weights)])
        return []

    loop(b, e.inputs, [], step)
    for (m, v), register in sums.items():
        _store(b, register, out(m, v), e.out_stride)


# -- codes times bytes


def _codes(b: Builder, e: Emission, rows: Value) -> None:
    """A group at a time, all rows of it: 4 bits are spread to bytes once."""
    sums = _room(b, 16 * 64 * 4)
    spread = _room(b, 256 * 64) if e.format == CODE4_DOT else I64(0)
    words = b.lshr(e.group, I64(2))
    head = 2 * LANES * e.vectors * (2 if e.affine else 1)
    group_bytes = b.add(b.mul(words, I64(256 if e.format == CODE8_DOT else 128)), I64(head))
    full, left = b.lshr(rows, I64(4)), b.and_(rows, I64(15))

    def some(first: Value, count: Value, height: Value) -> None:
        """Emit the product of `count` times `height` rows."""
        part = _moved(b, e, first)

        def one_group(g: Value, _: Sequence[Value]) -> list[Value]:
            start = b.add(e.weights, b.mul(g, group_bytes))
            codes = at(b, start, head)
            if e.format == CODE4_DOT:
                loop(b, words, [], partial(_spread, b, codes, spread))
                codes = spread

            def registers(i: Value, _: Sequence[Value]) -> list[Value]:
                here = _moved(b, part, b.shl(i, I64(4)))
                _sum_group(b, here, g, codes, sums)
                _scale_rows(b, here, height, g, start, sums)
                return []

            loop(b, count, [], registers)
            return []

        with b.if_then(b.and_(b.icmp_signed(">", count, I64(0)), b.icmp_signed(">", height, I64(0)))):
            whole = b.icmp_signed(">", e.group, I64(32))
            _set_shapes(b, "bytes", BYTE_SHAPES, b.add(height, b.select(whole, I64(17), I64(0))))
            loop(b, b.sdiv(e.inputs, e.group), [], one_group)

    some(I64(0), full, I64(16))
    some(b.shl(full, I64(4)), I64(1), left)
    _release(b)


def _room(b: Builder, nbytes: int) -> Value:
    with b.goto_entry_block():
        place = b.alloca(ir.ArrayType(I8, nbytes))
        place.align = 64
        return b.ptrtoint(place, I64)


def _spread(b: Builder, codes: Value, spread: Value, i: Value, _: Sequence[Value]) -> list[Value]:
    """Four inputs of 4 bits, each for 64 outputs, as bytes."""
    here = b.add(codes, b.shl(i, I64(7)))
    for pair in range(2):
        both = load(b, at(b, here, 64 * pair), INTS)
        place = at(b, b.add(spread, b.shl(i, I64(8))), 128 * pair)
        store(b, b.and_(both, int_splat(0x0F0F0F0F)), place)
        store(b, b.and_(b.lshr(both, int_splat(4)), int_splat(0x0F0F0F0F)), at(b, place, 64))
    return []


def _byte_shape(rows: int, width: int) -> list[tuple[int, int]]:
    """Registers 0 to 3: sums, 4: rows of up to 64 bytes, 5 to 7: weights, one row for four inputs."""
    return [(rows, 64)] * 4 + [(rows, width)] + [(width // 4, 64)] * 3


BYTE_SHAPES = [_byte_shape(rows, width) for width in (32, 64) for rows in range(17)]


def _sum_group(b: Builder, e: Emission, g: Value, codes: Value, sums: Value) -> None:
    """sums [16, 64] int32: codes times bytes over one group."""
    for v in range(4):
        _zero(b, v)
    x = b.add(e.x, b.mul(g, e.group))
    steps = b.lshr(b.add(e.group, I64(63)), I64(6))

    def step(i: Value, _: Sequence[Value]) -> list[Value]:
        _load(b, 4, b.add(x, b.shl(i, I64(6))), e.x_stride)
        here = b.add(codes, b.shl(i, I64(12)))
        for v in range(4):
            weights = (5, 6, 7)[v % 3]
            _load(b, weights, at(b, here, 64 * v), I64(256))
            call(b, "llvm.x86.tdpbsud", VOID, [I8(v), I8(4), I8(weights)])
        return []

    loop(b, steps, [], step)
    for v in range(4):
        _store(b, v, at(b, sums, 64 * v), I64(256))


def _scale_rows(b: Builder, e: Emission, rows: Value, g: Value, head: Value, sums: Value) -> None:
    """out += scale * (sum - centre * sum of bytes), as lanes.py does it."""
    fresh = lanes.first_of(b, e, g)
    half = ir.VectorType(ir.HalfType(), LANES)

    def halves(v: int) -> Value:
        return b.fpext(load(b, at(b, head, 2 * LANES * v), half), FLOATS)

    scales = [halves(v) for v in range(4)]
    offsets = [halves(4 + v) if e.affine else None for v in range(4)]

    def row(m: Value, _: Sequence[Value]) -> list[Value]:
        place = b.add(b.mul(m, e.group_stride), b.shl(g, I64(2)))
        of_x = splat(b, load(b, b.add(e.x_sums, place), I32))
        factor = splat(b, load(b, b.add(e.x_scales, place), FLOAT))
        start = b.mul(of_x, int_splat(-CENTRE[e.format]))
        out_row = b.add(e.out, b.mul(m, e.out_stride))
        sum_row = b.add(sums, b.shl(m, I64(8)))
        for v in range(4):
            total = b.add(load(b, at(b, sum_row, 64 * v), INTS), start)
            value = b.fmul(b.sitofp(total, FLOATS), factor)
            out = fma(b, value, scales[v], lanes.so_far(b, fresh, at(b, out_row, 64 * v)))
            if e.affine:
                out = fma(b, offsets[v], b.fmul(b.sitofp(of_x, FLOATS), factor), out)
            store(b, out, at(b, out_row, 64 * v))
        return []

    loop(b, rows, [], row)
