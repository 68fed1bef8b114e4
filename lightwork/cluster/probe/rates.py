"""Rates: matrix products by type and number of rows, attention, softmax, elementwise; what a call costs.

Through torch, as the engine's own kernels are, on as many threads as it is set to; else numpy in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from lightwork.cluster.probe.samples import Bench

SIDE = 1024
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
QUICK_ROWS = (1, 16, 256)
INT8_ROWS = 32
"""torch's int8 product wants more than 16 rows."""
SOFTMAX_OPS = 5
"""Per element: maximum, difference, exponential, sum, quotient."""
ACTIVATION_OPS = 3
"""Per element, as the models count it: two read, one written."""


def benches(quick: bool) -> list[Bench]:
    """Matrix rates are named "rate/matmul/float32/<rows>"; other kinds have one size."""
    rows = QUICK_ROWS if quick else ROWS
    found = _numpy(rows) if find_spec("torch") is None else _torch(rows)
    return found + _calls()


def _numpy(rows: tuple[int, ...]) -> list[Bench]:
    weight = np.ones((SIDE, SIDE), np.float32)
    found = []
    for count in rows:
        x = np.ones((count, SIDE), np.float32)
        found.append(_product("float32", count, partial(np.matmul, x, weight, out=x.copy()), "numpy"))
    x = np.ones((64, SIDE), np.float32)
    y = np.empty_like(x)
    elementwise = partial(np.multiply, x, x, out=y)
    found.append(_other("vector", x.size * ACTIVATION_OPS, elementwise, "numpy product"))
    return found


def _torch(rows: tuple[int, ...]) -> list[Bench]:
    import torch

    found = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.ones(SIDE, SIDE, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        for count in rows:
            x = torch.ones(count, SIDE, dtype=dtype)
            fn = partial(_without_grad, torch.nn.functional.linear, x, weight)
            found.append(_product(name, count, fn, "torch"))
    weight8 = torch.ones(SIDE, SIDE, dtype=torch.int8).t()
    for count in (n for n in rows if n >= INT8_ROWS):
        x8 = torch.ones(count, SIDE, dtype=torch.int8)
        found.append(_product("int8", count, partial(torch._int_mm, x8, weight8), "torch"))
    return found + _torch_others()


def _torch_others() -> list[Bench]:
    import torch

    x = torch.randn(64, SIDE)
    found = [
        _other("softmax", x.numel() * SOFTMAX_OPS, partial(torch.softmax, x, -1), "torch"),
        _other(
            "vector",
            x.numel() * ACTIVATION_OPS,
            lambda: torch.nn.functional.silu(x) * x,
            "torch silu, product",
        ),
    ]
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.randn(1, 8, 256, 64).to(dtype)
        ops = 4.0 * q.numel() * q.shape[2]
        fn = partial(torch.nn.functional.scaled_dot_product_attention, q, q, q)
        found.append(
            _other("attention", ops, fn, "torch, 8 heads, 256 keys", str(dtype).removeprefix("torch."))
        )
    return found


def _without_grad(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


def _product(dtype: str, rows: int, fn: Callable[[], Any], by: str) -> Bench:
    return Bench(
        name=f"rate/matmul/{dtype}/{rows}",
        method=f"{by} product of rows with a {SIDE} x {SIDE} matrix",
        fn=fn,
        amount=2.0 * rows * SIDE * SIDE,
    )


def _other(kind: str, ops: float, fn: Callable[[], Any], by: str, dtype: str = "float32") -> Bench:
    return Bench(name=f"rate/{kind}/{dtype}", method=by, fn=fn, amount=ops)


def _calls() -> list[Bench]:
    """What it costs to start something, from Python."""
    found = []
    if find_spec("torch") is not None:
        import torch

        one = torch.ones(16)
        found.append(
            Bench(
                name="call/torch",
                method="torch sum of two tensors of 16",
                fn=partial(torch.add, one, one),
                per_s=False,
            )
        )
    if find_spec("numba") is not None:
        from lightwork.cluster.probe import loops

        data = np.zeros(2, np.int64)
        found.append(
            Bench(
                name="call/numba",
                method="compiled function of one array",
                fn=partial(loops.nothing, data),
                per_s=False,
            )
        )
        found.append(
            Bench(
                name="call/region",
                method="parallel region of two elements",
                fn=partial(loops.region, data),
                per_s=False,
            )
        )
    if not found:
        small = np.ones(16, np.float32)
        found.append(
            Bench(
                name="call/numpy",
                method="numpy sum of two arrays of 16",
                fn=partial(np.add, small, small),
                per_s=False,
            )
        )
    return found
