"""What this processor can do: which instructions the emitters may use."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm


class Isa(NamedTuple):
    """Instructions beyond plain vectors; LLVM lowers the rest to whatever is there.

    dot8: bytes times bytes into int32, 512 or 256 bits wide, 0 without (VNNI). dot16: pairs of bfloat16
    into float32. permute: sixteen-entry tables in a register. many: 32 vector registers instead of 16.
    """

    dot8: int = 0
    dot16: bool = False
    permute: bool = False
    many: bool = False


PORTABLE = Isa()
"""Plain vectors only: what every processor computes."""


@cache
def host() -> Isa:
    """The instructions of the processor this runs on."""
    has = {name for name, there in llvm.get_host_cpu_features().items() if there}
    wide = "avx512f" in has
    dot8 = 512 if "avx512vnni" in has else 256 if "avxvnni" in has else 0
    neon = "neon" in has
    return Isa(dot8=dot8, dot16="avx512bf16" in has, permute=wide, many=wide or neon)
