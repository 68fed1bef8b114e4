"""Quant: weights rounded to 16, 8 or 4 bits while they are loaded, inputs rounded for integer products.

Paper:  "LLM.int8()", 2022 (8 bits, scales from the largest value); "QLoRA", 2023 (the NF4 table)
Idea:   a step reads every weight once, so fewer bits are more tokens; each group of inputs has its own
        scale, in 4 bits the one of least squared error; inputs become bytes, a scale per row and group
Shapes: [N, K] -> codes [N, K], float16 scales [N, K / group]; rows [R, K] -> int8, scales [R, K / group]
Cost:   bits + 16 / group bits per weight read per step; integer dot products where the processor has them
Claims: lean_attention
Differs: no outlier columns; inputs are rounded per row, so that a token's bits are its own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightwork.errors import RangeError
from lightwork.kernels.cpu.formats import (
    BF16_DOT,
    CODE4,
    CODE4_DOT,
    CODE8,
    CODE8_DOT,
    F32,
    INT8_DOT,
    MatrixFormat,
)
from lightwork.models.precisions import Grouping, Numbers

NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution (QLoRA, appendix E)."""

KV_FORMATS = {32: F32, 16: BF16_DOT, 8: INT8_DOT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quant:
    """bits: of a weight; 16 is bfloat16. group: inputs that share a scale. activations: bits of the inputs
    of a product; 32 leaves them as they are. table: what 4-bit codes stand for. kv_bits: of keys and values.

    Raises RangeError for another group, for 16 bits with activations of other bits, and for a table without
    4 bits and activations of 32 bits.
    """

    bits: Literal[16, 8, 4] = 8
    group: int = 128
    activations: Literal[8, 16, 32] | None = None
    table: Literal["even", "nf4"] = "even"
    kv_bits: Literal[32, 16, 8] = 16

    def __post_init__(self) -> None:
        if self.group not in (32, 64, 128, 256):
            raise RangeError(f"group is {self.group}", expected="32, 64, 128 or 256", fix="Quant(group=128)")
        if (self.bits == 16) != (self._inputs == 16):
            raise RangeError(
                f"weights of {self.bits} bits with inputs of {self._inputs}",
                expected="16 with 16; 8 or 4 with 8 or 32",
                fix=f"Quant(bits={self.bits})",
            )
        if self.table != "even" and (self.bits != 4 or self._inputs != 32):
            raise RangeError(
                f"table {self.table!r} with {self.bits} bits and inputs of {self._inputs}",
                expected="bits=4 and activations=32, whose codes are looked up",
                fix='Quant(bits=4, activations=32, table="nf4")',
            )

    @property
    def _inputs(self) -> int:
        return self.activations or (16 if self.bits == 16 else 8)

    def numbers(self, stored: str, grouping: Grouping | None = None) -> Numbers:
        kv = KV_FORMATS[self.kv_bits]
        if self.bits == 16:
            return Numbers(MatrixFormat(code=BF16_DOT), kv, "bfloat16 products, sums in float32")
        whole = {8: (CODE8_DOT, CODE8), 4: (CODE4_DOT, CODE4)}[self.bits]
        table = NF4 if self.table == "nf4" else ()
        matrices = MatrixFormat(code=whole[self._inputs == 32], group=self.group, table=table)
        return Numbers(
            matrices, kv, f"{self.bits} bits in groups of {self.group}, inputs of {self._inputs} bits"
        )
