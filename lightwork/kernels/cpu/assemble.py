"""LLVM IR to object files for this processor."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from lightwork.errors import InvariantError
from lightwork.kernels.cpu.machine_code import ENTRY


def assemble(module: str) -> bytes:
    """An object file of the module's entry and what that calls, which may lie anywhere in memory.

    Raises InvariantError if it calls a function that no library of every process has.
    """
    machine = _machine()
    parsed = llvm.parse_assembly(module)
    for function in parsed.functions:
        if not function.is_declaration and function.name != ENTRY:
            function.linkage = llvm.Linkage.internal
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    library = ctypes.CDLL(None)
    for name in (function.name for function in parsed.functions if function.is_declaration):
        if not name.startswith("llvm.") and not hasattr(library, name):
            raise InvariantError(f"compiled code calls {name}", expected="functions of the C library")
    return bytes(machine.emit_object(parsed))


def link(file: bytes) -> int:
    """The address of an object file's entry, linked by LLVM: where machine_code.py does not."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(file))
    engine.finalize_object()
    _in_use.append(engine)
    return int(engine.get_function_address(ENTRY))


_in_use: list[Any] = []


@cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
