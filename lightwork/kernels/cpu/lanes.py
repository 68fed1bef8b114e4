"""The micro-kernel in vectors: a lane is an output, a few rows are multiplied with each vector of weights.

There are no sums across lanes: every output is one chain over k. So a result has the same bits for every
number of rows, and splitting k between calls changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir

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
    INT8_DOT,
)
from lightwork.kernels.cpu.isa import Isa
from lightwork.kernels.cpu.vectors import (
    BYTES,
    FLOAT,
    FLOATS,
    HALF,
    I8,
    I16,
    I32,
    I64,
    INTS,
    LANES,
    PAIRS,
    Builder,
    Value,
    at,
    call,
    float_splat,
    fma,
    int_splat,
    lanes,
    load,
    loop,
    prefetch,
    splat,
    store,
    widen_bf16,
)


class Emission(NamedTuple):
    """One emission: what is emitted, and the addresses and strides (bytes) it is called with.

    streamed: the weights of successive calls follow one another in memory.
    """

    format: int
    isa: Isa
    rows: int
    vectors: int
    affine: bool
    streamed: bool
    weights: Value
    table: Value
    x: Value
    x_stride: Value
    x_scales: Value
    x_sums: Value
    group_stride: Value
    out: Value
    out_stride: Value
    inputs: Value
    group: Value
    fresh: Value
    ahead: Value
    pace: Value

    def cells(self) -> list[tuple[int, int]]:
        return [(m, v) for m in range(self.rows) for v in range(self.vectors)]


Body = Callable[[Builder, Emission], None]
"""Emits the product of a fixed number of rows."""


def by_rows(
    b: Builder, whole: Emission, rows: Value, body: Body | None = None, heights: Sequence[int] = ()
) -> None:
    """Emit kernels of several heights, falling to 1, and let each do as many rows as it can.

    body: emits one of them, by default as the format is multiplied. heights: by default what registers hold.
    """
    done = I64(0)
    body = body or (_grouped if whole.format in CENTRE else _dense)
    for height in heights or ((6, 4, 2, 1) if whole.isa.many else (2, 1)):
        left = b.sub(rows, done)
        count = b.sdiv(left, I64(height))
        if height == 6:  # 8 rows are 4 + 4, not 6 + 2
            spare = b.icmp_signed("==", b.srem(left, I64(6)), I64(2))
            count = b.sub(count, b.zext(b.and_(spare, b.icmp_signed(">", left, I64(2))), I64))

        with b.if_then(b.icmp_signed(">", count, I64(0))):
            loop(b, count, [], partial(_at_row, b, whole, body, height, rows, done))
        done = b.add(done, b.mul(count, I64(height)))


NUMBER_BYTES = {F32: 4, BF16: 2, F16: 2, INT8_DOT: 2, BF16_DOT: 4}
"""What a step takes of each output's weights: one number, or a pair."""
PAIRED = (BF16_DOT, INT8_DOT)
SHORTS = ir.VectorType(I16, 2 * LANES)


def _step_bytes(t: Emission) -> int:
    """What a step reads of the weights: one input of all outputs, or as many as stay together."""
    numbers = {CODE8: 4, CODE8_DOT: 4, CODE4: 2, CODE4_DOT: 2} | NUMBER_BYTES
    return LANES * t.vectors * numbers[t.format]


def _weight_bytes(b: Builder, t: Emission) -> Value:
    """Bytes of the weights of all inputs."""
    size = I64(_step_bytes(t))
    if t.format not in CENTRE:
        return b.mul(_steps(b, t), size)
    head = 2 * LANES * t.vectors * (2 if t.affine else 1)
    each = b.add(b.mul(b.lshr(t.group, I64(2)), size), I64(head))
    return b.mul(b.sdiv(t.inputs, t.group), each)


def _steps(b: Builder, t: Emission) -> Value:
    """Steps over all inputs."""
    return b.lshr(t.inputs, I64(2 if t.format in CENTRE else 1 if t.format in PAIRED else 0))


def _lines_ahead(t: Emission) -> int:
    """Cache lines that a step fetches: of a page as many as it reads, of a stream half of them."""
    return max(1, _step_bytes(t) // (128 if t.streamed else 64))


def _ahead(b: Builder, t: Emission, row: Value, rows: Value) -> tuple[Value, Value]:
    """What the pass that begins at a row fetches, and how many bytes of it in a step.

    Of a page, what the caller wants next. Of a stream with several passes, the weights that follow the block,
    part in each pass: or the first would wait for memory, and the others, which find the block in the
    second-level cache, leave it idle.
    """
    pace = I64(64 * _lines_ahead(t))
    if not t.streamed:
        return t.ahead, I64(_step_bytes(t))
    block_bytes = _weight_bytes(b, t)
    done = b.mul(b.mul(b.sdiv(b.add(row, I64(5)), I64(6)), _steps(b, t)), pace)
    useful = b.and_(b.icmp_signed(">", rows, I64(6)), b.icmp_signed("<", done, block_bytes))
    following = b.add(b.add(t.weights, block_bytes), done)
    return b.select(useful, following, t.weights), b.select(useful, pace, I64(0))


def _fetch_ahead(b: Builder, t: Emission, step: Value) -> None:
    """Into the second-level cache: the first has room for fewer lines that are on their way."""
    if t.streamed and (t.rows < 4 or t.vectors < 4):
        return
    place = b.add(t.ahead, b.mul(step, t.pace))
    for line in range(_lines_ahead(t)):
        prefetch(b, at(b, place, 64 * line), cache=2)


def _at_row(
    b: Builder,
    whole: Emission,
    body: Body,
    height: int,
    rows: Value,
    done: Value,
    i: Value,
    carried: Sequence[Value],
) -> list[Value]:
    row = b.add(done, b.mul(i, I64(height)))

    def moved(address: Value, stride: Value) -> Value:
        return b.add(address, b.mul(row, stride))

    ahead, pace = _ahead(b, whole, row, rows)
    part = whole._replace(
        rows=height,
        ahead=ahead,
        pace=pace,
        x=moved(whole.x, whole.x_stride),
        x_scales=moved(whole.x_scales, whole.group_stride),
        x_sums=moved(whole.x_sums, whole.group_stride),
        out=moved(whole.out, whole.out_stride),
    )
    body(b, part)
    return []


def out_of(b: Builder, t: Emission, m: int, v: int) -> Value:
    return at(b, at(b, t.out, b.mul(t.out_stride, I64(m))), 64 * v)


def so_far(b: Builder, fresh: Value, place: Value, kind: Any = FLOATS) -> Value:
    """The sums that are added to: those at a place, or none."""
    return b.select(fresh, ir.Constant(kind, None), load(b, place, kind, 4))


def _x(b: Builder, t: Emission, m: int, offset: Value, kind: Any) -> Value:
    """Sixteen copies of what row m has at a byte offset."""
    return splat(b, load(b, at(b, at(b, t.x, b.mul(t.x_stride, I64(m))), offset), kind))


# -- dense formats


def _dense(b: Builder, t: Emission) -> None:
    pairs, size = t.format in PAIRED, NUMBER_BYTES[t.format]
    kind = INTS if t.format == INT8_DOT else FLOATS
    multiply = {INT8_DOT: _dot_bytes, BF16_DOT: _dot16}.get(t.format, _multiply_add)
    sums = [so_far(b, t.fresh, out_of(b, t, m, v), kind) for m, v in t.cells()]
    step_bytes = LANES * t.vectors * size

    def body(i: Value, sums: Sequence[Value]) -> list[Value]:
        here = at(b, t.weights, b.mul(i, I64(step_bytes)))
        x = [_x(b, t, m, b.shl(i, I64(2)), I32 if pairs else FLOAT) for m in range(t.rows)]
        _fetch_ahead(b, t, i)
        added = dict(zip(t.cells(), sums, strict=True))
        for v in range(t.vectors):
            place = at(b, here, LANES * size * v)
            w = _widened(b, t.format, place)
            for m in range(t.rows):
                added[m, v] = multiply(b, t.isa, w, x[m], added[m, v])
        return [added[cell] for cell in t.cells()]

    for (m, v), value in zip(t.cells(), loop(b, _steps(b, t), sums, body), strict=True):
        store(b, value, out_of(b, t, m, v))


def _widened(b: Builder, form: int, place: Value) -> Value:
    if form == F32:
        return load(b, place, FLOATS)
    if form == F16:
        return b.fpext(load(b, place, lanes(HALF)), FLOATS)
    if form == BF16:
        return widen_bf16(b, load(b, place, lanes(I16)))
    if form == BF16_DOT:
        return load(b, place, INTS)
    return b.bitcast(b.sext(load(b, place, ir.VectorType(I8, 2 * LANES)), SHORTS), INTS)


def _multiply_add(b: Builder, isa: Isa, w: Value, x: Value, total: Value) -> Value:
    return fma(b, w, x, total)


def _dot16(b: Builder, isa: Isa, w: Value, x: Value, total: Value) -> Value:
    """Add the products of two bfloat16 in each lane of w and x (int32) to total."""
    if isa.dot16:
        args = [total, b.bitcast(w, PAIRS), b.bitcast(x, PAIRS)]
        return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, args)
    low = [b.bitcast(b.shl(one, int_splat(16)), FLOATS) for one in (w, x)]
    high = [b.bitcast(b.and_(one, int_splat(0xFFFF0000)), FLOATS) for one in (w, x)]
    return fma(b, high[0], high[1], fma(b, low[0], low[1], total))


def _dot_bytes(b: Builder, isa: Isa, w: Value, x: Value, total: Value) -> Value:
    """Add the products of two int16 in each lane of w and x to total, int32."""
    pairs = [b.bitcast(one, SHORTS) for one in (w, x)]
    if isa.dot8 == 512:
        return call(b, "llvm.x86.avx512.vpdpwssd.512", INTS, [total, *pairs])
    # In this form LLVM sees the instruction that multiplies pairs and adds the two, where there is one.
    products = b.mul(*(b.sext(one, ir.VectorType(I32, 2 * LANES)) for one in pairs))
    halves = [ir.Constant(INTS, list(range(first, 2 * LANES, 2))) for first in (0, 1)]
    return b.add(total, b.add(*(b.shuffle_vector(products, products, half) for half in halves)))


# -- grouped formats


def _grouped(b: Builder, t: Emission) -> None:
    """A group at a time: its codes are summed in registers, then scaled and added to out."""
    dot = t.format in (CODE8_DOT, CODE4_DOT)
    eight = t.format in (CODE8, CODE8_DOT)
    word_bytes = LANES * t.vectors * (4 if eight else 2)
    head_bytes = 2 * LANES * t.vectors * (2 if t.affine else 1)
    groups = b.sdiv(t.inputs, t.group)
    words = b.lshr(t.group, I64(2))
    group_bytes = b.add(b.mul(words, I64(word_bytes)), I64(head_bytes))

    def one_group(g: Value, _: Sequence[Value]) -> list[Value]:
        first = b.mul(g, words)
        head = at(b, t.weights, b.mul(g, group_bytes))
        codes = at(b, head, head_bytes)
        of_x = [_of_group(b, t, t.x_sums, m, g, I32 if dot else FLOAT) for m in range(t.rows)]
        # Codes count from a centre that is not zero: its share is known before the first product.
        start = [b.mul(total, int_splat(-CENTRE[t.format])) if dot else float_splat(0.0) for total in of_x]

        def one_word(i: Value, sums: Sequence[Value]) -> list[Value]:
            word = b.add(first, i)
            here = at(b, codes, b.mul(i, I64(word_bytes)))
            _fetch_ahead(b, t, word)
            added = dict(zip(t.cells(), sums, strict=True))
            (_word_of_bytes if dot else _word_of_floats)(b, t, here, word, added)
            return [added[cell] for cell in t.cells()]

        sums = loop(b, words, [start[m] for m, _ in t.cells()], one_word)
        _scale(b, t, g, head, of_x, dict(zip(t.cells(), sums, strict=True)))
        return []

    loop(b, groups, [], one_group)


def first_of(b: Builder, t: Emission, g: Value) -> Value:
    """Whether a group is the first of sums that begin at zero."""
    return b.and_(t.fresh, b.icmp_signed("==", g, I64(0)))


def _word_of_bytes(
    b: Builder, t: Emission, here: Value, word: Value, added: dict[tuple[int, int], Value]
) -> None:
    """Four inputs: codes times bytes, added in int32."""
    x = [_x(b, t, m, b.shl(word, I64(2)), I32) for m in range(t.rows)]
    for v, codes in _four_codes(b, t, here):
        for m in range(t.rows):
            added[m, v] = _dot8(b, t.isa, codes, x[m], added[m, v])


def _four_codes(b: Builder, t: Emission, here: Value) -> list[tuple[int, Value]]:
    """Per vector of outputs: four codes, a byte each, in an int32 lane."""
    if t.format in (CODE8, CODE8_DOT):
        return [(v, load(b, at(b, here, 64 * v), INTS)) for v in range(t.vectors)]
    found = []
    for pair in range(t.vectors // 2):
        both = load(b, at(b, here, 64 * pair), INTS)
        found.append((2 * pair, b.and_(both, int_splat(0x0F0F0F0F))))
        found.append((2 * pair + 1, b.and_(b.lshr(both, int_splat(4)), int_splat(0x0F0F0F0F))))
    return found


def _dot8(b: Builder, isa: Isa, codes: Value, x: Value, total: Value) -> Value:
    """Add the products of four unsigned with four signed bytes in each lane to total, int32."""
    if isa.dot8 == 512:
        name = "llvm.x86.avx512.vpdpbusd.512"
        return call(b, name, INTS, [total, b.bitcast(codes, BYTES), b.bitcast(x, BYTES)])
    if isa.dot8 == 256:
        return _dot8_halves(b, codes, x, total)
    for byte in range(4):
        code = b.and_(b.lshr(codes, int_splat(8 * byte)), int_splat(0xFF))
        value = b.ashr(b.shl(x, int_splat(24 - 8 * byte)), int_splat(24))
        total = b.add(total, b.mul(code, value))
    return total


def _dot8_halves(b: Builder, codes: Value, x: Value, total: Value) -> Value:
    half, half_bytes = ir.VectorType(I32, 8), ir.VectorType(I8, 32)

    def part(value: Value, first: int) -> Value:
        index = ir.Constant(half, list(range(first, first + 8)))
        return b.shuffle_vector(value, ir.Constant(INTS, ir.Undefined), index)

    low, high = (
        call(
            b,
            "llvm.x86.avx512.vpdpbusd.256",
            half,
            [part(total, i), b.bitcast(part(codes, i), half_bytes), b.bitcast(part(x, i), half_bytes)],
        )
        for i in (0, 8)
    )
    return b.shuffle_vector(low, high, ir.Constant(INTS, list(range(LANES))))


def _word_of_floats(
    b: Builder, t: Emission, here: Value, word: Value, added: dict[tuple[int, int], Value]
) -> None:
    """Four inputs: codes widened to float32, one input after the other."""
    codes = _four_codes(b, t, here)
    table = None if t.format == CODE8 else load(b, t.table, FLOATS)
    for byte in range(4):
        offset = at(b, b.shl(word, I64(4)), 4 * byte)
        x = [_x(b, t, m, offset, FLOAT) for m in range(t.rows)]
        for v, four in codes:
            code = b.and_(b.lshr(four, int_splat(8 * byte)), int_splat(0xFF))
            if table is None:
                w = b.sitofp(b.sub(code, int_splat(128)), FLOATS)
            else:
                w = _look_up(b, t.isa, table, code)
            for m in range(t.rows):
                added[m, v] = fma(b, w, x[m], added[m, v])


def _look_up(b: Builder, isa: Isa, table: Value, code: Value) -> Value:
    """table[code] in each lane, code < 16."""
    if isa.permute:
        return call(b, "llvm.x86.avx512.permvar.sf.512", FLOATS, [table, code])
    chosen = float_splat(0.0)
    for i in range(16):
        entry = splat(b, b.extract_element(table, I32(i)))
        chosen = b.select(b.icmp_signed("==", code, int_splat(i)), entry, chosen)
    return chosen


def _of_group(b: Builder, t: Emission, numbers: Value, m: int, g: Value, kind: Any) -> Value:
    """Sixteen copies of what row m has for a group, in x_scales or x_sums."""
    if t.format not in (CODE8_DOT, CODE4_DOT) and not t.affine:
        return float_splat(0.0)
    row = b.add(b.mul(t.group_stride, I64(m)), b.shl(g, I64(2)))
    return splat(b, load(b, at(b, numbers, row), kind))


def _scale(
    b: Builder, t: Emission, g: Value, head: Value, of_x: list[Value], sums: dict[tuple[int, int], Value]
) -> None:
    """out += scale * sum (+ offset * sum of the inputs), with the row's own scale for bytes."""
    dot = t.format in (CODE8_DOT, CODE4_DOT)
    half = lanes(HALF)
    fresh = first_of(b, t, g)
    if dot:
        factor = [_of_group(b, t, t.x_scales, m, g, FLOAT) for m in range(t.rows)]
        of_x = [b.fmul(b.sitofp(total, FLOATS), f) for total, f in zip(of_x, factor, strict=True)]
    for v in range(t.vectors):
        scale = b.fpext(load(b, at(b, head, 2 * LANES * v), half), FLOATS)
        place = at(b, head, 2 * LANES * (t.vectors + v))
        offset = b.fpext(load(b, place, half), FLOATS) if t.affine else None
        for m in range(t.rows):
            value = b.fmul(b.sitofp(sums[m, v], FLOATS), factor[m]) if dot else sums[m, v]
            out = fma(b, value, scale, so_far(b, fresh, out_of(b, t, m, v)))
            if t.affine:
                out = fma(b, offset, of_x[m], out)
            store(b, out, out_of(b, t, m, v))
