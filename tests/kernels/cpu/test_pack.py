"""Packed matrices say what was put in, to within half a step of what they are rounded to."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from numpy.typing import NDArray
from packing import FORMATS, packed, table_of, unpacked

from lightwork.errors import RangeError
from lightwork.kernels.cpu.formats import BF16, BF16_DOT, F16, F32, MatrixFormat
from lightwork.kernels.cpu.pack import narrow, pack

EIGHT = [name for name, form in FORMATS.items() if form.quantised and not form.four_bits]
FOUR = [name for name, form in FORMATS.items() if form.four_bits and not form.affine]


def matrix(form: MatrixFormat, n: int, k: int) -> NDArray[np.generic]:
    """A random matrix in the type that `pack` takes for a format."""
    w = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    if form.code in (BF16, BF16_DOT):
        return narrow(w)
    return w.astype(np.float16).view(np.uint16) if form.code == F16 else w


def grouped(w: NDArray[np.floating], group: int) -> NDArray[np.floating]:
    return w.reshape(len(w), -1, group)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (64, 256), (70, 161), (130, 33)])
def test_what_is_added_to_fill_blocks_and_groups_is_zero(name: str, n: int, k: int) -> None:
    form = FORMATS[name]
    w, _ = unpacked(packed(matrix(form, n, k), form), form, k)
    assert w.shape == (-(-n // 64) * 64, form.padded(k))
    assert not w[n:].any()
    # A group with an offset holds zero only roughly; what it is multiplied with is zero too.
    assert form.affine or not w[:, k:].any()
    full = np.zeros((n, form.padded(k)), np.float32)
    full[:, :k] = np.random.default_rng(n).standard_normal((n, k))
    step = 2.0**-8 * abs(full)
    if form.quantised:
        span = np.ptp(grouped(full, form.group), 2) if form.affine else abs(grouped(full, form.group)).max(2)
        step = (span * (0.25 if form.four_bits else 0.01)).repeat(form.group, 1)
    assert (abs(w[:n] - full) <= step)[:, :k].all()


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_do_not_depend_on_the_threads(name: str) -> None:
    form = FORMATS[name]
    w = matrix(form, 330, 70)
    made = []
    for threads in (1, 2, 5):
        into = np.empty(form.nbytes(*w.shape), np.uint8)
        pack(w, into, form, threads)
        made.append(into.tobytes())
    assert len(set(made)) == 1


def test_room_of_another_size_is_refused() -> None:
    with pytest.raises(RangeError, match=r"100 bytes for a matrix of \(64, 8\)"):
        pack(np.zeros((64, 8), np.float32), np.empty(100, np.uint8), MatrixFormat(code=F32))


@pytest.mark.parametrize("code", [BF16, BF16_DOT, F16])
def test_every_number_of_16_bits_is_kept(code: int) -> None:
    form = MatrixFormat(code=code)
    w = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    pairs = 2 if code == BF16_DOT else 1
    blocks = packed(w, form).view(np.uint16).reshape(4, 256 // pairs, 64, pairs)
    np.testing.assert_array_equal(blocks.transpose(0, 2, 1, 3).reshape(256, 256), w)


def test_float32_is_kept() -> None:
    form = MatrixFormat(code=F32)
    w = np.random.default_rng(0).integers(0, 1 << 32, (64, 9), np.uint32)
    np.testing.assert_array_equal(packed(w.view(np.float32), form).view(np.uint32).reshape(9, 64).T, w)


def test_rounding_to_bfloat16_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x = rng.integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    x = np.append(x[~np.isnan(x)], [0.0, -0.0, np.inf, -np.inf, 3.4e38, 1e-45]).astype(np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16)
    np.testing.assert_array_equal(narrow(x), expected.view(torch.uint16).numpy())


@pytest.mark.parametrize("size", [1e-6, 1e-4, 0.02, 1.0, 3e4])
@pytest.mark.parametrize("name", EIGHT)
def test_eight_bits_are_within_half_a_step(name: str, size: float) -> None:
    form = FORMATS[name]
    w = np.random.default_rng(2).standard_normal((64, 4 * form.group)).clip(-2, 2).astype(
        np.float32
    ) * np.float32(size)
    bytes_ = packed(w, form)
    got, _ = unpacked(bytes_, form, w.shape[1])
    scales = bytes_.reshape(4, -1)[:, :128].copy().view(np.float16).astype(np.float64).T
    # An offset of 16 bits is off by 2^-11 of itself, or by half of the least float16.
    slack = 2.0**-11 * 2 * size + 2.0**-25 if form.affine else 0.0
    assert (abs(grouped(got - w, form.group)) <= 0.5001 * scales[:, :, None] + slack).all()
    # Nor is the step wider than it has to be, except by the rounding of the scale itself.
    most = (
        np.ptp(grouped(w, form.group), 2) / 255 if form.affine else abs(grouped(w, form.group)).max(2) / 127
    )
    assert (scales <= most * (1 + 2.0**-10) + 2.0**-24).all()


@pytest.mark.parametrize("draw", ["normal", "uniform", "outlier", "one sign"])
@pytest.mark.parametrize("name", FOUR)
def test_four_bits_are_no_worse_than_scaling_the_largest(name: str, draw: str) -> None:
    form = FORMATS[name]
    rng = np.random.default_rng(3)
    w = rng.standard_normal((128, 4 * form.group)).astype(np.float32)
    if draw == "uniform":
        w = rng.uniform(-1, 1, w.shape).astype(np.float32)
    elif draw == "outlier":
        w[:, :: form.group] *= 30
    elif draw == "one sign":
        w = abs(w)
    got, _ = unpacked(packed(w, form), form, w.shape[1])
    table = table_of(form).astype(np.float64)
    values = grouped(w, form.group).astype(np.float64)
    extreme = np.take_along_axis(values, abs(values).argmax(2)[:, :, None], 2)
    for end in (table[0], table[15]):
        scale = (extreme / end).astype(np.float16).astype(np.float64)
        nearest = abs(values[..., None] / scale[..., None] - table).argmin(3)
        plain = ((values - scale * table[nearest]) ** 2).sum(2)
        ours = ((values - grouped(got, form.group)) ** 2).sum(2)
        assert (ours <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", [n for n, form in FORMATS.items() if form.quantised])
def test_groups_of_zeros_and_of_one_huge_number(name: str) -> None:
    form = FORMATS[name]
    w = np.zeros((64, 3 * form.group), np.float32)
    w[:, form.group : 2 * form.group] = 0.01
    w[:, form.group + 5] = np.where(np.arange(64) % 2, 6e4, -6e4)
    w[:, 2 * form.group :] = np.random.default_rng(4).standard_normal((64, form.group))
    got, _ = unpacked(packed(w, form), form, w.shape[1])
    alone, _ = unpacked(packed(np.ascontiguousarray(w[:, 2 * form.group :]), form), form, form.group)
    assert np.isfinite(got).all()
    assert not got[:, : form.group].any()
    np.testing.assert_allclose(got[:, form.group + 5], w[:, form.group + 5], rtol=0.001)
    np.testing.assert_array_equal(got[:, 2 * form.group :], alone)
