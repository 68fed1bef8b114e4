"""Object files: made once, kept, and linked into memory that this process runs."""

from __future__ import annotations

import ctypes
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from lightwork.errors import InvariantError, LightworkError
from lightwork.kernels.cpu import assemble, entries, machine_code
from lightwork.kernels.cpu.formats import F32
from lightwork.kernels.cpu.isa import host
from lightwork.kernels.cpu.tile import NUM_ARGS, emit

needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="LLVM links on other processors")
LINKERS = [
    pytest.param(machine_code.link, marks=needs_x86, id="ours"),
    pytest.param(assemble.link, id="LLVM"),
]
Link = Callable[[bytes], int]

CALLS = """
declare double @erf(double)
declare double @cos(double)
@table = internal constant [3 x double] [double 1.5, double 2.5, double 4.0]
define internal double @helper(i64 %i) noinline {
  %p = getelementptr [3 x double], [3 x double]* @table, i64 0, i64 %i
  %v = load double, double* %p
  ret double %v
}
define double @entry(i64 %i, double %x) {
  %a = call double @helper(i64 %i)
  %b = call double @erf(double %x)
  %c = call double @cos(double %x)
  %d = fadd double %b, %c
  %e = fmul double %a, %d
  ret double %e
}
"""


@pytest.mark.parametrize("link", LINKERS)
def test_code_with_constants_and_library_calls(link: Link) -> None:
    kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64, ctypes.c_double)
    function = kind(link(assemble.assemble(CALLS)))
    for i, scale in enumerate((1.5, 2.5, 4.0)):
        assert function(i, 0.25) == pytest.approx(scale * (math.erf(0.25) + math.cos(0.25)), rel=1e-15)


@pytest.mark.parametrize("link", LINKERS)
def test_a_constant_found_through_the_table_of_addresses(link: Link) -> None:
    module = "@table = constant [2 x i64] [i64 5, i64 7]\ndefine i64 @entry(i64 %i) {\n"
    module += "  %p = getelementptr [2 x i64], [2 x i64]* @table, i64 0, i64 %i\n"
    module += "  %v = load i64, i64* %p\n  ret i64 %v\n}\n"
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(link(assemble.assemble(module)))
    assert [function(i) for i in range(2)] == [5, 7]


@pytest.mark.parametrize("link", LINKERS)
def test_a_kernel_is_the_same_however_it_is_linked(link: Link) -> None:
    rng = np.random.default_rng(0)
    x, w, out = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 40), (40, 64), (3, 64)))
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * NUM_ARGS)(
        link(assemble.assemble(emit(F32, 4, False, host())))
    )
    call(w.ctypes.data, 0, x.ctypes.data, 160, 0, 0, 0, out.ctypes.data, 256, 3, 40, 1, 1, 0)
    np.testing.assert_allclose(out, x.astype(np.float64) @ w, rtol=1e-4, atol=1e-5)


@needs_x86
def test_a_relocation_that_is_not_expected_is_refused() -> None:
    module = "@far = thread_local global i64 5\ndefine i64* @entry() {\n  ret i64* @far\n}\n"
    with pytest.raises(InvariantError, match="relocation"):
        machine_code.link(assemble.assemble(module))


def test_a_function_that_no_library_has_is_refused_when_it_is_compiled() -> None:
    module = "declare void @no_such_function()\ndefine void @entry() {\n  call void @no_such_function()\n"
    with pytest.raises(InvariantError, match="compiled code calls no_such_function"):
        assemble.assemble(module + "  ret void\n}\n")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTWORK_HOME", str(tmp_path))
    return tmp_path


def test_code_is_compiled_once_and_kept(home: Path) -> None:
    compiled: list[bytes] = []

    def compile_() -> bytes:
        compiled.append(assemble.assemble(CALLS))
        return compiled[-1]

    first, second = machine_code.load("sum", compile_), machine_code.load("sum", compile_)
    assert first != second
    assert len(compiled) == 1
    assert [file.read_bytes() for file in home.rglob("*.o")] == compiled
    assert not [*home.rglob("*.part")]


def test_a_home_that_cannot_be_written_warns_and_compiles(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("LIGHTWORK_HOME", str(home / "file"))
    with pytest.warns(UserWarning, match="compiled code cannot be kept in .*set LIGHTWORK_HOME"):
        assert machine_code.load("sum", lambda: assemble.assemble(CALLS))


@pytest.mark.multiproc
def test_what_cannot_be_compiled_is_named(home: Path) -> None:
    with pytest.raises(LightworkError, match=r"(?s)the compiler of missing ended with 1: .*AttributeError"):
        entries.Entry("step", "missing", (int,)).prepare()


@pytest.mark.multiproc
def test_a_later_start_imports_no_compiler(checkpoint: Callable[..., Any]) -> None:
    program = f"""
import sys
import numpy as np
from lightwork import models
from lightwork.decode.choose import choose
from lightwork.decode.sampling import Sampling
from lightwork.models import packed
from lightwork.models.precisions.stored import Stored
packed.KEPT_BYTES = 0
model = models.load_compiled({str(checkpoint("llama"))!r}, precision=Stored())
model.warm_up()
choose(np.ones((1, 9), np.float32), [Sampling(seed=3)], [4])
print(sorted({{"numba", "llvmlite", "torch"}} & {{*sys.modules}}))
"""
    for expected in (None, "[]\n"):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert expected is None or done.stdout == expected
