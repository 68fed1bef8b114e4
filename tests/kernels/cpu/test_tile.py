"""The micro-kernel against a product in float64 of the same rounded numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from numpy.typing import NDArray
from packing import FORMATS, Floats, bfloat16, call, packed, table_of, unpacked

from lightwork.kernels.cpu.amx import STEP
from lightwork.kernels.cpu.entries import kernel
from lightwork.kernels.cpu.formats import (
    BF16,
    BF16_DOT,
    CODE4_DOT,
    CODE8_DOT,
    F16,
    F32,
    INT8_DOT,
    SHORT,
    MatrixFormat,
)
from lightwork.kernels.cpu.isa import PORTABLE, Isa, host
from lightwork.kernels.cpu.pack import narrow

ROWS = [*range(1, 14), 16, 17, 31, 33, 97]
DOTS = (CODE8_DOT, CODE4_DOT)
HALVES = host()._replace(dot8=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What the kernel is called with, and what x @ w + out is without any rounding.

    unit: inputs that stay together. bound: the most that float32 may be wrong, from the number of roundings.
    """

    form: MatrixFormat
    vectors: int
    unit: int
    weights: NDArray[Any]
    x: NDArray[Any]
    scales: NDArray[np.float32]
    sums: NDArray[Any]
    out: NDArray[np.float32]
    exact: Floats
    bound: Floats


def random_x(rng: np.random.Generator, form: MatrixFormat, k: int) -> tuple[NDArray[Any], ...]:
    """97 rows as the format multiplies them, their scales and sums per group, and what they stand for."""
    groups = k // form.group
    one = np.zeros((97, groups), np.float32)
    if form.code == BF16_DOT:
        x = narrow(rng.standard_normal((97, k)).astype(np.float32))
        return x, one, one, bfloat16(x)
    if form.code == INT8_DOT:
        x = rng.integers(-SHORT, SHORT + 1, (97, k)).astype(np.int16)
        return x, one, one, x.astype(np.float64)
    if form.code in DOTS:
        x = rng.integers(-127, 128, (97, k)).astype(np.int8)
        scales = rng.uniform(0.001, 0.1, (97, groups)).astype(np.float32)
        sums = x.reshape(97, groups, -1).sum(2, dtype=np.int32)
        return x, scales, sums, x * scales.astype(np.float64).repeat(form.group, 1)
    x = rng.standard_normal((97, k)).astype(np.float32)
    sums = x.astype(np.float64).reshape(97, groups, -1).sum(2).astype(np.float32)
    return x, one, sums, x.astype(np.float64)


def random_w(
    rng: np.random.Generator, form: MatrixFormat, k: int, vectors: int
) -> tuple[NDArray[Any], Floats, Floats]:
    """The bytes of one block, its numbers [K, outputs], and their sizes."""
    if vectors == 1 and form.code == BF16_DOT:
        w = narrow(rng.standard_normal((k // 2, 16, 2)).astype(np.float32))
        wide = bfloat16(w).transpose(0, 2, 1).reshape(k, 16)
        return w, wide, abs(wide)
    if form.code == INT8_DOT:
        w = rng.integers(-128, 128, (k // 2, 16 * vectors, 2)).astype(np.int8)
        wide = w.transpose(0, 2, 1).reshape(k, 16 * vectors).astype(np.float64)
        return w, wide, abs(wide)
    if vectors == 1:
        w = rng.standard_normal((k, 16 * vectors))
        kept = {F32: np.float32, F16: np.float16}
        w = narrow(w.astype(np.float32)) if form.code == BF16 else w.astype(kept.get(form.code, w.dtype))
        wide = bfloat16(w) if form.code == BF16 else w.astype(np.float64)
        return w, wide, abs(wide)
    w = (rng.standard_normal((64, k)) + 0.2).astype(np.float32)
    if form.code in (BF16, BF16_DOT):
        w = narrow(w)
    elif form.code == F16:
        w = w.astype(np.float16).view(np.uint16)
    block = packed(w, form)
    wide, size = unpacked(block, form, k)
    return block, wide.T, size.T


def random_product(form: MatrixFormat, k: int, vectors: int = 4) -> Product:
    rng = np.random.default_rng(k)
    x, scales, sums, x_wide = random_x(rng, form, k)
    weights, w, size = random_w(rng, form, k, vectors)
    out, roundings = rng.standard_normal((97, 16 * vectors)).astype(np.float32), k + 8
    if form.code == INT8_DOT:
        roundings = 0
        out = rng.integers(-1000, 1000, out.shape).astype(np.int32)
    return Product(
        form=form,
        vectors=vectors,
        unit=form.group if form.quantised else {BF16_DOT: STEP, INT8_DOT: 2}.get(form.code, 1),
        weights=weights,
        x=x,
        scales=scales,
        sums=sums,
        out=out,
        exact=out + x_wide @ w,
        bound=roundings * 2.0**-23 * (abs(out) + abs(x_wide) @ size),
    )


def run(
    p: Product,
    rows: int = 97,
    isa: Isa | None = None,
    cuts: tuple[int, ...] = (),
    skip: int = 0,
    fresh: bool = False,
    streamed: bool = True,
) -> NDArray[np.float32]:
    """out + x @ w of `rows` rows after `skip`, the inputs cut into several calls."""
    compute = kernel(p.form.code, vectors=p.vectors, affine=p.form.affine, streamed=streamed, isa=isa)
    out = p.out[skip : skip + rows].copy()
    table, k = table_of(p.form), p.x.shape[1]
    for first, last in zip((0, *cuts), (*cuts, k), strict=True):
        groups = 4 * (first // p.form.group)
        call(
            compute,
            p.weights.ctypes.data + p.weights.nbytes * first // k,
            table.ctypes.data,
            p.x[skip:].ctypes.data + p.x.itemsize * first,
            p.x.strides[0],
            p.scales[skip:].ctypes.data + groups,
            p.sums[skip:].ctypes.data + groups,
            p.sums.strides[0],
            out.ctypes.data,
            out.strides[0],
            rows,
            last - first,
            p.form.group,
            fresh and first == 0,
        )
    return out


def sizes(form: MatrixFormat) -> tuple[int, ...]:
    if form.quantised:
        return form.group, 3 * form.group
    return (2, 64, 130) if form.code == BF16_DOT else (1, 2, 7, 64, 129)


WIDE = [(name, k) for name, form in FORMATS.items() for k in sizes(form)]
CASES = [pytest.param(FORMATS[name], k, 4, id=f"{name} x {k}") for name, k in WIDE]
CASES += [pytest.param(MatrixFormat(code=INT8_DOT), k, 4, id=f"INT8_DOT x {k}") for k in (24, 64)]
CASES += [
    pytest.param(MatrixFormat(code=code), 64, 1, id=f"{name} x 64, 16 outputs")
    for name, code in (("F32", F32), ("BF16", BF16), ("INT8_DOT", INT8_DOT), ("BF16_DOT", BF16_DOT))
]


@pytest.mark.parametrize(("form", "k", "vectors"), CASES)
def test_every_format_multiplies(form: MatrixFormat, k: int, vectors: int) -> None:
    product = random_product(form, k, vectors)
    whole = run(product)
    assert (abs(whole - product.exact) <= product.bound).all()
    for rows in ROWS:
        np.testing.assert_array_equal(run(product, rows), whole[:rows])
        np.testing.assert_array_equal(run(product, rows, skip=97 - rows), whole[97 - rows :])


@pytest.mark.parametrize("isa", [None, PORTABLE], ids=["host", "portable"])
@pytest.mark.parametrize(("form", "k", "vectors"), [case for case in CASES if not case.values[0].quantised])
def test_pages_give_the_bits_of_a_stream(form: MatrixFormat, k: int, vectors: int, isa: Isa | None) -> None:
    product = random_product(form, k, vectors)
    whole = run(product, isa=isa)
    for rows in ROWS:
        for fresh in (False, True):
            apart = run(product, rows, isa=isa, streamed=False, fresh=fresh)
            np.testing.assert_array_equal(apart, run(product, rows, isa=isa, fresh=fresh))
        np.testing.assert_array_equal(run(product, rows, isa=isa, streamed=False), whole[:rows])


@pytest.mark.parametrize(("form", "k", "vectors"), CASES)
def test_inputs_may_be_cut_between_calls(form: MatrixFormat, k: int, vectors: int) -> None:
    product = random_product(form, k, vectors)
    whole = run(product)
    middle = k // 2 // product.unit * product.unit
    for cuts in {
        (product.unit,),
        (middle,),
        (product.unit, middle),
        tuple(range(product.unit, k, product.unit)),
    }:
        if all(0 < cut < k for cut in cuts) and list(cuts) == sorted(set(cuts)):
            np.testing.assert_array_equal(run(product, cuts=cuts), whole)


@pytest.mark.parametrize(("form", "k", "vectors"), CASES)
def test_every_processor_gives_the_same_bits(form: MatrixFormat, k: int, vectors: int) -> None:
    """All formats but BF16_DOT are the same multiply-adds on every processor, and sums of int32."""
    product = random_product(form, k, vectors)
    plain = run(product, isa=PORTABLE)
    assert (abs(plain - product.exact) <= product.bound).all()
    for rows in (1, 5):
        np.testing.assert_array_equal(run(product, rows, isa=PORTABLE), plain[:rows])
    if form.code != BF16_DOT or not host().dot16:
        np.testing.assert_array_equal(plain, run(product))


@pytest.mark.skipif(not host().matrix, reason="this processor has no AMX")
@pytest.mark.parametrize(("form", "k", "vectors"), CASES)
def test_vectors_and_matrix_registers_agree(form: MatrixFormat, k: int, vectors: int) -> None:
    product = random_product(form, k, vectors)
    in_vectors = run(product, isa=host()._replace(matrix=False))
    assert (abs(in_vectors - product.exact) <= product.bound).all()
    if form.code in DOTS:
        np.testing.assert_array_equal(in_vectors, run(product))


@pytest.mark.parametrize(("form", "k", "vectors"), CASES)
def test_fresh_sums_overwrite_whatever_is_there(form: MatrixFormat, k: int, vectors: int) -> None:
    product = random_product(form, k, vectors)
    empty = replace(product, out=np.zeros_like(product.out))
    full = replace(product, out=np.full_like(product.out, 7e8 if form.code == INT8_DOT else np.nan))
    cuts = (product.unit,) if k > product.unit else ()
    for rows in ROWS:
        np.testing.assert_array_equal(run(full, rows, cuts=cuts, fresh=True), run(empty, rows, cuts=cuts))


@pytest.mark.multiproc
def test_a_kernel_may_be_the_first_thing_that_is_compiled() -> None:
    program = "from lightwork.kernels.cpu.entries import kernel; print(kernel(0) > 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(host().dot8 == 0, reason="this processor has no VNNI")
@pytest.mark.parametrize("name", [n for n, form in FORMATS.items() if form.code in DOTS])
def test_half_as_wide_dot_products_give_the_same_bits(name: str) -> None:
    form = FORMATS[name]
    product = random_product(form, 3 * form.group)
    np.testing.assert_array_equal(run(product, isa=HALVES), run(product))


@pytest.mark.parametrize("name", [n for n, form in FORMATS.items() if form.code in DOTS])
def test_products_of_the_largest_bytes_do_not_overflow(name: str) -> None:
    form = FORMATS[name]
    product = random_product(form, 2 * form.group)
    for value in (127, -128):
        product.x[:] = value
        product.sums[:] = value * form.group
        w, size = unpacked(product.weights, form, 2 * form.group)
        x = value * product.scales.astype(np.float64).repeat(form.group, 1)
        bound = 2.0**-23 * (2 * form.group + 8) * (abs(product.out) + abs(x) @ size.T)
        for isa in (None, PORTABLE):
            assert (abs(run(product, isa=isa) - (product.out + x @ w.T)) <= bound).all()
