"""What Python calls of the compiled code. The first call loads it, or has it compiled and kept."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from functools import cache
from typing import Any

from lightwork.errors import LightworkError
from lightwork.kernels.cpu.isa import Isa, host
from lightwork.kernels.cpu.machine_code import load

C_TYPES: dict[type, Any] = {int: ctypes.c_int64, float: ctypes.c_double}


class Entry:
    """A function of numbers that numba compiles, called without Python around it. Calls release the lock.

    args: int (64 bits) or float (double) for each argument. The result is an int, 0 where there is none.
    """

    def __init__(self, module: str, function: str, args: tuple[type, ...]) -> None:
        self._place = f"lightwork.kernels.cpu.{module}", function, [arg.__name__ for arg in args]
        self._call = ctypes.CFUNCTYPE(ctypes.c_int64, *[C_TYPES[arg] for arg in args])()

    def prepare(self) -> None:
        """Load it; compile it in half a minute, if no earlier process did. Raises LightworkError."""
        if not self._call:
            self._call = type(self._call)(load(".".join(self._place[:2]), self._compile))

    def __call__(self, *args: float) -> int:
        self.prepare()
        return int(self._call(*args))

    def _compile(self) -> bytes:
        """In a process of its own, so that this one is left without the compiler's memory."""
        program = "import sys\nfrom lightwork.kernels.cpu.compiled import object_file\n"
        program += f"sys.stdout.buffer.write(object_file{self._place})"
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, env={**os.environ, "PYTHONPATH": path}
        )
        if done.returncode != 0:
            error = done.stderr.decode(errors="replace").strip()
            raise LightworkError(f"the compiler of {self._place[1]} ended with {done.returncode}: {error}")
        return done.stdout


run = Entry("step", "run", (int, int))
attend_alone = Entry("step", "attend_alone", (int, int))
all_there = Entry("check", "all_there", (int,))
winner = Entry("pick", "winner", (int, int, float, int, float, int, int))


@cache
def kernel(
    form: int, *, vectors: int = 4, affine: bool = False, streamed: bool = True, isa: Isa | None = None
) -> int:
    """The address of a format's compiled micro-kernel, for `multiply`. isa: this processor's, by default.

    The others are those of `tile.emit`.
    """
    isa = host() if isa is None else isa
    features = "_".join(f"{name}{int(value)}" for name, value in isa._asdict().items() if value)

    def compile_() -> bytes:
        from lightwork.kernels.cpu.assemble import assemble
        from lightwork.kernels.cpu.tile import emit

        return assemble(emit(form, vectors, affine, isa, streamed=streamed))

    kind = f"{form}_{vectors}{'_affine' * affine}{'_streamed' * streamed}"
    return load(f"multiply_{kind}_{features}", compile_)
