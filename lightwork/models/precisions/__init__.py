"""Precisions: in which numbers a model is stored and computed on a CPU.

Interface: `Precision.numbers(stored)`. To add one: a file with a frozen dataclass named after it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from lightwork.kernels.cpu.formats import MatrixFormat

__all__ = ["Numbers", "Precision"]


class Numbers(NamedTuple):
    """matrices: format of the weights. kv: of keys and values (F32, BF16_DOT, INT8). reason: in words."""

    matrices: MatrixFormat
    kv: int
    reason: str


class Precision(Protocol):
    """What a model's numbers are turned into when it is loaded."""

    def numbers(self, stored: str) -> Numbers:
        """stored: type of the checkpoint's matrices: float32, bfloat16 or float16."""
        ...
