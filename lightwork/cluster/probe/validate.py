"""Kernels the probe has not seen, predicted by the cost model and then timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from lightwork.cluster.devices import Cluster, Device
from lightwork.cluster.pricing import CostModel
from lightwork.cluster.probe.rates import SOFTMAX_OPS
from lightwork.cluster.probe.samples import Bench, Sample, measure
from lightwork.errors import MissingExtraError
from lightwork.runtime.effects import DTYPE_BYTES, Work

PRODUCTS = (
    (1, 512, 2048),
    (3, 777, 777),
    (12, 1024, 1536),
    (48, 512, 512),
    (100, 333, 1000),
    (200, 2048, 512),
)
SQUARES = (128, 256, 333, 700)
ROWS = ((32, 512), (100, 1000), (512, 2048))
HEADS = ((4, 128, 64), (8, 333, 64), (4, 600, 128))
COPIES = (1 << 18, 999_999, 1 << 23, 30_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A held-out kernel. error: relative, of the prediction."""

    name: str
    predicted_s: float
    measured_s: float
    spread: float

    @property
    def error(self) -> float:
        return abs(self.predicted_s / self.measured_s - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A kernel the probe does not fit. moved: bytes, which say what level of memory it lives in."""

    name: str
    fn: Callable[[], Any]
    kind: str
    dtype: str
    ops: float
    moved: float
    rows: int = 0

    def bench(self) -> Bench:
        return Bench(name=self.name, method="held out", fn=self.fn, per_s=False)

    def work(self, device: Device) -> Work:
        """Its counted work; a copy's writes are weighted by what writing costs beside reading."""
        level = device.memory(device.level(self.moved))
        weight = 1.0
        if self.kind == "copy":
            weight = (1.0 + level.read_bytes_per_s / level.write_bytes_per_s) / 2
        return Work(
            kind=self.kind,
            dtype=self.dtype,
            ops=self.ops,
            bytes=self.moved * weight,
            level=level.name,
            rows=self.rows,
        )


def validate(machine: Cluster, *, rounds: int = 7) -> list[Prediction]:
    """Predicted and measured seconds of 30 kernels. Raises MissingExtraError without torch."""
    kernels = held_out()
    if not kernels:
        raise MissingExtraError("torch", "torch")
    return compare(machine, kernels, measure([k.bench() for k in kernels], rounds))


def compare(machine: Cluster, kernels: Sequence[HeldOut], samples: Sequence[Sample]) -> list[Prediction]:
    """Predictions for kernels beside what was measured of them."""
    costs = CostModel(machine)
    return [
        Prediction(
            name=kernel.name,
            predicted_s=costs.seconds([kernel.work(machine.device)]),
            measured_s=sample.median,
            spread=sample.spread,
        )
        for kernel, sample in zip(kernels, samples, strict=True)
    ]


def held_out() -> list[HeldOut]:
    """Products, softmax, attention and copies, of even and odd sizes; none without torch."""
    if find_spec("torch") is None:
        return []
    return [*_products(), *_softmax(), *_attention(), *_copies()]


def _products() -> Iterator[HeldOut]:
    import torch

    for dtype in ("float32", "bfloat16"):
        for m, k, n in (*PRODUCTS, *((s, s, s) for s in SQUARES)):
            x, w = (torch.ones(*shape, dtype=getattr(torch, dtype)) for shape in ((m, k), (n, k)))
            yield HeldOut(
                name=f"matmul {dtype} {m} x {k} x {n}",
                fn=partial(torch.nn.functional.linear, x, w),
                kind="matmul",
                dtype=dtype,
                ops=2.0 * m * k * n,
                moved=DTYPE_BYTES[dtype] * (m * k + n * k + m * n),
                rows=m,
            )


def _softmax() -> Iterator[HeldOut]:
    import torch

    for rows, width in ROWS:
        x = torch.randn(rows, width)
        fn = partial(torch.softmax, x, -1)
        ops, moved = SOFTMAX_OPS * x.numel(), 2 * x.nbytes
        name = f"softmax {rows} x {width}"
        yield HeldOut(name=name, fn=fn, kind="softmax", dtype="float32", ops=ops, moved=moved)


def _attention() -> Iterator[HeldOut]:
    import torch

    for heads, keys, size in HEADS:
        q = torch.randn(1, heads, keys, size)
        fn = partial(torch.nn.functional.scaled_dot_product_attention, q, q, q)
        name = f"attention {heads} heads, {keys} keys of {size}"
        ops, moved = 4.0 * q.numel() * keys, 4 * q.nbytes
        yield HeldOut(name=name, fn=fn, kind="attention", dtype="float32", ops=ops, moved=moved)


def _copies() -> Iterator[HeldOut]:
    import torch

    for size in COPIES:
        a, b = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
        name = f"copy {size} bytes"
        yield HeldOut(name=name, fn=partial(b.copy_, a), kind="copy", dtype="int8", ops=0.0, moved=2 * size)
