"""What compiles a region: any compiler that takes code without branches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from lightwork.errors import SpecError

Function = Callable[..., tuple[Any, ...]]


class Code(nn.Module):
    """A region as a module: the root's weights are its own. fixed: inputs that are no tensors, by place."""

    def __init__(self, root: nn.Module, run: Function, fixed: dict[int, Any], place: str) -> None:
        super().__init__()
        self.root = root
        self.run, self.fixed, self.place = run, fixed, place

    def forward(self, *tensors: torch.Tensor) -> tuple[Any, ...]:
        rest = iter(tensors)
        count = len(tensors) + len(self.fixed)
        return self.run(self.root, *(self.fixed[i] if i in self.fixed else next(rest) for i in range(count)))


class Backend(Protocol):
    """A compiler of regions."""

    def compile(self, region: Code, example: Sequence[torch.Tensor]) -> Function:
        """A function of tensors shaped as the examples."""
        ...


@dataclass(frozen=True, slots=True)
class Eager:
    """No compiler: the region as it is."""

    def compile(self, region: Code, example: Sequence[torch.Tensor]) -> Function:
        return region.forward


@dataclass(frozen=True, slots=True)
class Traced:
    """torch's tracer, frozen: no Python between operations, weights as they are at the first call."""

    def compile(self, region: Code, example: Sequence[torch.Tensor]) -> Function:
        """Raises SpecError, with file and line, if the region reads a tensor's value in Python."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                traced = torch.jit.trace(region.eval(), tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                raise _refusal(region, error) from error
            frozen: Function = torch.jit.freeze(traced, optimize_numerics=False)._c._get_method(
                "forward"
            )  # past nn.Module's call
        if read := next((w for w in seen if w.category.__name__ == "TracerWarning"), None):
            raise _refusal(region, read.message)
        return frozen


def _refusal(region: Code, why: object) -> SpecError:
    return SpecError(
        f"{region.place}: this region cannot be traced: {str(why)[:160]}",
        expected="torch operations that read no tensor's value in Python",
        fix="move the decision into the forward",
    )
