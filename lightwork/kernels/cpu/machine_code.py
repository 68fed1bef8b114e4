"""Machine code, compiled once for a processor and a version of these files, then loaded from disk.

Loading needs LLVM's loader only. The compilers before it, numba above all, take a second to start and 60 MB.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from lightwork.errors import InvariantError
from lightwork.home import home, keep

ENTRY = "entry"
"""The function of a module that is called."""


def assemble(module: str) -> bytes:
    """LLVM IR as an object file for this processor: its entry and what that calls.

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


def load(name: str, compile_: Callable[[], bytes]) -> int:
    """The address of the entry of the object file of this name, valid for the process.

    compile_: makes the object file if none is kept. Warns where it cannot be kept.
    """
    kept = home() / "code" / _version() / f"{name}.o"
    try:
        made = kept.read_bytes()
    except OSError:
        made = compile_()
        try:
            keep(kept, lambda part: part.write_bytes(made))
        except OSError as error:
            warnings.warn(
                f"compiled code cannot be kept in {kept.parent}: {error.strerror}. Every start will compile; "
                "set LIGHTWORK_HOME to a folder with room",
                stacklevel=2,
            )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(made))
    engine.finalize_object()
    _kept.append(engine)
    return int(engine.get_function_address(ENTRY))


_kept: list[Any] = []
"""Engines whose code is in use."""


def _machine() -> Any:
    """What compiles for this processor; code that may lie anywhere in memory."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, reloc="pic"
    )


@cache
def _version() -> str:
    """Names all that machine code depends on: the files of this folder, the compilers, the processor."""
    digest = sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    features = llvm.get_host_cpu_features().flatten()
    for part in (version("numba"), version("llvmlite"), llvm.get_host_cpu_name(), features):
        digest.update(part.encode())
    return digest.hexdigest()[:32]
