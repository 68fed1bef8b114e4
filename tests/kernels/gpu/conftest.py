"""These tests need Triton's interpreter, which has to be asked for before Triton is first imported: they are
collected only in the child process that `tests/kernels/test_gpu.py` starts."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
