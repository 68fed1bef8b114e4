"""How loops are compiled here, and the few casts that plain numba lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm

from lightwork.kernels.cpu.vectors import FLOAT, HALF, I16, I32, Builder, Value

numba: Any = import_module("numba")
types: Any = import_module("numba.core.types")
_extending: Any = import_module("numba.extending")
F = TypeVar("F", bound=Callable[..., Any])


def intrinsic(emit: Callable[..., Any]) -> Any:
    """A function of compiled code, given by what it emits."""
    return _extending.intrinsic(emit)


def compiled(fn: F) -> F:
    """Compile a loop that runs without the interpreter's lock; divisions do not raise."""
    return cast(F, numba.njit(nogil=True, error_model="numpy")(fn))


def summing(fn: F) -> F:
    """The same, where sums may be taken in vectors. Their order is fixed once compiled."""
    flags = {"reassoc", "contract", "nsz", "arcp"}
    return cast(F, numba.njit(nogil=True, error_model="numpy", fastmath=flags)(fn))


def stamped(fn: F) -> F:
    """Compile once for this machine: kept on disk until any file of this folder changes.

    numba alone looks only at the file of the function itself, not at what it calls.
    """
    made: Any = numba.njit(nogil=True, error_model="numpy", cache=True)(fn)
    digest = sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    made._cache._cache_file._source_stamp = digest.hexdigest()
    return cast(F, made)


_kept: list[Any] = []
"""Engines whose code is in use."""


def compile_module(module: Any, name: str) -> int:
    """Compile LLVM IR for this processor; the address of one of its functions, valid for the process."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    parsed = llvm.parse_assembly(str(module))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _kept.append(engine)
    return int(engine.get_function_address(name))


@intrinsic
def half_bits(typing: Any, x: Any) -> Any:
    """The bits of a float32 rounded to float16."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        return b.bitcast(b.fptrunc(args[0], HALF), I16)

    return types.uint16(types.float32), generate


@intrinsic
def half_value(typing: Any, bits: Any) -> Any:
    """The float32 of a float16's bits."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        return b.fpext(b.bitcast(args[0], HALF), FLOAT)

    return types.float32(types.uint16), generate


@intrinsic
def bfloat_bits(typing: Any, x: Any) -> Any:
    """The bits of a float32 rounded to bfloat16, to nearest even; a NaN may become infinite."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        bits = b.bitcast(args[0], I32)
        odd = b.and_(b.lshr(bits, I32(16)), I32(1))
        return b.trunc(b.lshr(b.add(bits, b.add(odd, I32(0x7FFF))), I32(16)), I16)

    return types.uint16(types.float32), generate


@intrinsic
def bfloat_value(typing: Any, bits: Any) -> Any:
    """The float32 of a bfloat16's bits: exact."""

    def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
        return b.bitcast(b.shl(b.zext(args[0], I32), I32(16)), FLOAT)

    return types.float32(types.uint16), generate
