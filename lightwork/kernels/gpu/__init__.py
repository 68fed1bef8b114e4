"""Triton kernels of a serving step on a GPU; with TRITON_INTERPRET=1 the same code runs on a CPU, slowly.

tasks.py      attention's work cut into equal tasks, planned on the host with numpy
attention.py  lean attention over paged keys and values: decode, tree verification and prefill in one kernel
fused.py      norms, rotary embedding with the cache write, gated activation
pick.py       the choice of a token, with the noise of `decode.sampling`
mirror.py     a step's arrays on the device, at addresses that stay

Importing this raises MissingExtraError without Triton. `lightwork.kernels.attention` is the reference.
"""

from __future__ import annotations

from importlib import import_module

from lightwork.errors import MissingExtraError

try:
    import_module("triton")
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    raise MissingExtraError("triton", "gpu") from error
