"""Formats of matrices: what the micro-kernel multiplies, and how many bytes that takes. Needs no numba."""

from __future__ import annotations

from dataclasses import dataclass

F32, BF16, F16, INT8_DOT, BF16_DOT, CODE8, CODE4, CODE8_DOT, CODE4_DOT = range(9)
SHORT = 16383
"""The largest magnitude of an int16 that multiplies a byte: 1,000 products fit in an int32."""
CENTRE = {CODE8: 128, CODE8_DOT: 128, CODE4: 8, CODE4_DOT: 8}
"""The code that means zero in a symmetric format; offsets count from it."""

PARTS = 3
"""bfloat16 numbers whose sum has all the bits of a float32."""
BLOCK = 64
PAGE = 64
"""Outputs of a block of weights; tokens of a page of keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixFormat:
    """How the matrices of a model are stored and multiplied.

    code: F32, BF16, ... . group: inputs that share a scale (formats of codes). affine: groups have offsets
    too. table: what the 16 codes of CODE4 stand for, ascending; evenly spaced where it is empty. parts: of
    BF16_DOT, how many bfloat16 an input becomes: 1, by rounding, or PARTS.
    """

    code: int = F32
    group: int = 1
    affine: bool = False
    table: tuple[float, ...] = ()
    parts: int = 1

    @property
    def quantised(self) -> bool:
        return self.code in CENTRE

    @property
    def four_bits(self) -> bool:
        return self.code in (CODE4, CODE4_DOT)

    def padded(self, inputs: int) -> int:
        """Inputs, rounded up to whole groups or pairs."""
        unit = self.group if self.quantised else 2 if self.code == BF16_DOT else 1
        return -(-inputs // unit) * unit

    def block_bytes(self, inputs: int) -> int:
        """Bytes of one block of 64 outputs."""
        k = self.padded(inputs)
        if not self.quantised:
            return BLOCK * k * (4 if self.code == F32 else 2)
        head = 2 * BLOCK * (2 if self.affine else 1)
        return k // self.group * head + BLOCK * k // (2 if self.four_bits else 1)

    def nbytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a matrix."""
        return -(-outputs // BLOCK) * self.block_bytes(inputs)
