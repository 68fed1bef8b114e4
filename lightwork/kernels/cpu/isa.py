"""What this processor can do: which instructions the emitters may use."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import NamedTuple

from lightwork.cluster.processor import instructions

ARCH_PRCTL, ASK_FOR_STATE, TILE_DATA = 158, 0x1023, 18
"""Linux keeps no room for the matrix registers of a process that has not asked."""


class Isa(NamedTuple):
    """Instructions beyond plain vectors; LLVM lowers the rest to whatever is there.

    dot8: bytes times bytes into int32, 512 or 256 bits wide, 0 without (VNNI). dot16: pairs of bfloat16
    into float32. permute: sixteen-entry tables in a register. scale: products with powers of two. many: 32
    vector registers instead of 16. matrix: registers of 16 rows of 64 bytes, for bytes and pairs of
    bfloat16 (AMX).
    """

    dot8: int = 0
    dot16: bool = False
    permute: bool = False
    scale: bool = False
    many: bool = False
    matrix: bool = False


PORTABLE = Isa()
"""Plain vectors only: what every processor computes."""


@cache
def host() -> Isa:
    """The instructions of the processor this runs on."""
    has = instructions()
    wide = "avx512f" in has
    dot8 = 512 if "avx512_vnni" in has else 256 if "avx_vnni" in has else 0
    return Isa(
        dot8=dot8,
        dot16="avx512_bf16" in has,
        permute=wide,
        scale=wide,
        many=wide or "neon" in has,
        matrix={"amx_int8", "amx_bf16"} <= {*has} and _may_use_matrix_registers(),
    )


def _may_use_matrix_registers() -> bool:
    """Ask Linux for them, for all threads of this process."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    asked = (ctypes.c_long(ARCH_PRCTL), ctypes.c_long(ASK_FOR_STATE), ctypes.c_long(TILE_DATA))
    return int(libc.syscall(*asked)) == 0
