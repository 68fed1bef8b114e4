"""Tests on a real GPU. They share their steps with the tests of the same kernels in the interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "kernels" / "gpu"))
