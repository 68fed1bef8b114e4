"""Triton without its types, which it does not ship."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

triton: Any = import_module("triton")
tl: Any = import_module("triton.language")

if TYPE_CHECKING:
    constexpr = Any
    tensor = Any
else:
    constexpr = tl.constexpr
    tensor = tl.tensor


def kernel(fn: Callable[..., Any]) -> Any:
    """Compile for the device at the first launch, `kernel[grid](...)`, or at a call from another kernel."""
    return triton.jit(fn)


def at_least(size: int, least: int) -> int:
    """The power of two that holds `size` and is not below `least`."""
    return max(least, 1 << (size - 1).bit_length())
