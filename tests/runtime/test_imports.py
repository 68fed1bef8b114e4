"""Importing the runtime stays light."""

from __future__ import annotations

import subprocess
import sys


def test_the_runtime_loads_neither_torch_nor_numba_nor_asyncio():
    code = "import sys, lightwork.runtime; print({'torch', 'numba', 'asyncio', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
