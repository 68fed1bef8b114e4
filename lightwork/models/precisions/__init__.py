"""Precisions: in which numbers a model is stored and computed on a CPU.

Interface: `Precision.numbers(stored, grouping)`. To add one: a file with a frozen dataclass named after it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from lightwork.kernels.cpu.formats import MatrixFormat

__all__ = ["Grouping", "Numbers", "Precision"]


class Numbers(NamedTuple):
    """matrices: format of the weights. kv: of keys and values (F32, BF16_DOT, INT8_DOT). reason: in words."""

    matrices: MatrixFormat
    kv: int
    reason: str


class Grouping(NamedTuple):
    """How a checkpoint is quantised: bits of a code, inputs of a group, whether groups have offsets."""

    bits: int
    group: int
    affine: bool


class Precision(Protocol):
    """What a model's numbers are turned into when it is loaded."""

    def numbers(self, stored: str, grouping: Grouping | None = None) -> Numbers:
        """stored: type of the checkpoint: float32, bfloat16 or float16. grouping: of its matrices."""
        ...
