"""The Triton kernels without a GPU: their own tests in the interpreter, and compiled for GPUs nobody has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "gpu"
ROOT = FOLDER.parents[2]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.multiproc
def test_the_kernels_pass_their_tests_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = run(["-m", "pytest", str(FOLDER), "-p", "no:cacheprovider"], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.multiproc
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_every_kernel_compiles_for_a_gpu(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = run([str(FOLDER / "compile.py"), str(capability)], TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_triton_the_extra_is_named() -> None:
    code = "import sys; sys.modules['triton'] = None; import lightwork.kernels.gpu"
    done = run(["-c", code])
    assert 'pip install "lightwork[gpu]"' in done.stderr
