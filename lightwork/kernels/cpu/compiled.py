"""How loops are compiled here, and the few casts that plain numba lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm
from llvmlite import ir

from lightwork.kernels.cpu.assemble import assemble
from lightwork.kernels.cpu.machine_code import ENTRY
from lightwork.kernels.cpu.vectors import FLOAT, HALF, I16, I32, I64, Builder, Value

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


def object_file(module: str, function: str, args: Sequence[str]) -> bytes:
    """The object file of a compiled function that allocates nothing and raises nothing.

    args: "int" (64 bits) or "float" (double) for each; it returns an int, or nothing.
    """
    made = getattr(import_module(module), function)
    signature = tuple({"int": types.int64, "float": types.float64}[arg] for arg in args)
    made.compile(signature)
    # numba's functions take a place for a result and one for an error, and return whether there was one.
    entry = ir.Module(name=ENTRY)
    pointer, given = I64.as_pointer(), [{"int": I64, "float": ir.DoubleType()}[arg] for arg in args]
    kind = ir.FunctionType(I32, [pointer, pointer, *given])
    inner = ir.Function(entry, kind, made.overloads[signature].fndesc.llvm_func_name)
    outer = ir.Function(entry, ir.FunctionType(I64, given), ENTRY)
    b = ir.IRBuilder(outer.append_basic_block())
    result = b.alloca(I64)
    b.store(I64(0), result)
    b.call(inner, [result, b.alloca(I64), *outer.args])
    b.ret(b.load(result))
    # Views have no owner whose users are counted: this is never called, but numba's code mentions it.
    counted = ir.Function(entry, ir.FunctionType(ir.VoidType(), [pointer]), "NRT_MemInfo_call_dtor")
    ir.IRBuilder(counted.append_basic_block()).ret_void()
    whole = llvm.parse_assembly(made.inspect_llvm(signature))
    whole.link_in(llvm.parse_assembly(str(entry)))
    return assemble(str(whole))


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
