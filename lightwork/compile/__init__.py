"""Programs rewritten so that ordinary compilers can take them: dynamic networks split at their branches.

source.py       the syntax tree of a `forward`, and what is refused, by file and line
expand.py       static loops unrolled, static conditions folded, submodules that branch inlined
desugar.py      `return`, `break`, `continue`, `and`, `or`, ternaries as nested ifs with flags
dataflow.py     which expressions depend on tensors' values; which names are live
regions.py      straight-line runs between tensor-dependent conditions, and the host that is left
host.py         `split(module) -> Host`: calls regions, follows predicates, for one sample or a batch
backends.py     `Backend.compile(region, example) -> callable`: torch's tracer, or none
loops.py        another one, for small regions: their arithmetic as loops
zoo.py          nine small networks that branch, to try it on

To add a backend: a class with that method, given to `split(module, backend=...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from lightwork.compile.backends import Backend
    from lightwork.compile.host import Host

__all__ = ["split"]


def split(module: nn.Module, backend: Backend | None = None) -> Host:
    """The module's `forward`, cut at conditions that depend on tensors' values, for inference.

    backend: compiles each region when it is first reached with new shapes; None: loops for small regions and
    torch's tracer, frozen, for others. Weights are to stay as they are then. Raises SpecError, with file and
    line, for the rest.
    """
    from lightwork.compile.host import build
    from lightwork.compile.loops import Loops

    return build(module, backend or Loops())
