"""Weights as the checkpoint stores them, everything else in float32.

Paper:  none: what a checkpoint means when nothing is rounded
Idea:   widening a 16-bit weight to float32 is exact, so half the bytes are read and no bit is lost
Shapes: float32, bfloat16, float16 or codes [N, K] -> the same, in blocks of 64 outputs; KV float32
Cost:   the bytes of the checkpoint per step; float32 multiply-adds
Claims: lean_attention
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.kernels.cpu.formats import BF16, CODE4, CODE8, F16, F32, MatrixFormat
from lightwork.models.precisions import Grouping, Numbers

FORMATS = {"float32": F32, "bfloat16": BF16, "float16": F16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Exact: token for token what float32 arithmetic gives, but for some quantised checkpoints.

    Stored codes are kept. Scales and offsets are rounded to float16 (11 bits), which loses nothing of Q8_0
    and Q4_0; scales of Q4_K and Q6_K are finer, and so are offsets (Q4_K, AWQ, GPTQ). All matrices have the
    grouping of the first: one in full (often the head) or in another (Q6_K in a Q4_K_M file) is quantised.
    """

    def numbers(self, stored: str, grouping: Grouping | None = None) -> Numbers:
        if grouping is not None:
            bits, group, affine = grouping
            form = MatrixFormat(code={8: CODE8, 4: CODE4}[bits], group=group, affine=affine)
            return Numbers(form, F32, f"{bits} bits in groups of {group} as stored, computed in float32")
        return Numbers(MatrixFormat(code=FORMATS[stored]), F32, f"{stored} as stored, computed in float32")
