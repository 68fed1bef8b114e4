"""The host: a small generated program that calls regions and follows their predicates.

Its `source` is readable Python: each `yield` asks for a region by number, each `branch` records which way was
taken. One sample drives one such program. A batch drives one for each sample: those that wait for the same
region are computed together, the earliest region first, so samples that took different ways meet again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightwork.compile.backends import Backend, Code, Function
from lightwork.compile.expand import expand
from lightwork.compile.regions import Region, Split, cut
from lightwork.errors import RangeError, SpecError, UsageError

Steps = Generator[tuple[int, tuple[Any, ...]], tuple[Any, ...], Any]


@dataclass(frozen=True, slots=True)
class Way:
    """One side of a branch. place: file and line. times: how often it was taken."""

    place: str
    outcome: bool
    times: int


def build(module: nn.Module, backend: Backend) -> Host:
    """Raises UsageError for a module in training: only inference is compiled."""
    if module.training:
        raise UsageError("the module is in training", expected="a module for inference", fix="module.eval()")
    program = expand(module)
    split = cut(program)
    names = dict(program.globals)
    for region in split.regions:
        exec(compile(region.source, f"<region {region.number}>", "exec"), names)
    bodies = [names[f"region_{r.number}"] for r in split.regions]
    head = ", ".join(
        f"{p}={program.defaults[p]!r}" if p in program.defaults else p for p in program.parameters
    )
    source = "\n".join([f"def host({head}):", *split.host, ""])
    return Host(module, backend, split, bodies, source)


class Host:
    """A module compiled by its regions. source: the host program, regions: what it calls."""

    def __init__(
        self, module: nn.Module, backend: Backend, split: Split, bodies: list[Function], source: str
    ) -> None:
        self.source = source
        self.regions: Sequence[Region] = split.regions
        self._module, self._backend, self._bodies, self._places = module, backend, bodies, split.branches
        self._compiled: dict[tuple[Any, ...], Function] = {}
        self._taken: Counter[tuple[int, bool]] = Counter()
        space: dict[str, Any] = {"branch": self._branch}
        exec(compile(source, "<host>", "exec"), space)
        self._start: Callable[..., Steps] = space["host"]

    def __call__(self, *inputs: Any) -> Any:
        """What the module's forward gives for one sample's inputs."""
        with torch.no_grad():
            steps = self._start(*inputs)
            answer: Any = None
            try:
                while True:
                    number, given = steps.send(answer)
                    answer = self._run(number, given, rows=False)
            except StopIteration as stop:
                return stop.value

    def batch(self, samples: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The module's outputs for each tuple of inputs, in order. Each sample takes its own way.

        Samples whose tensors differ in shape are computed apart. What several samples share is vectorised by
        torch.vmap and not compiled: groups have any size.
        """
        if not samples:
            raise RangeError("a batch without samples", expected="one or more", fix="give a sample")
        results: list[Any] = [None] * len(samples)
        waiting: dict[int, tuple[int, tuple[Any, ...]]] = {}
        with torch.no_grad():
            steps = [self._start(*s) for s in samples]
            answers: dict[int, Any] = dict.fromkeys(range(len(samples)))
            while answers:
                for i, answer in answers.items():
                    try:
                        waiting[i] = steps[i].send(answer)
                    except StopIteration as stop:
                        results[i] = stop.value
                answers = self._together(waiting)
        return results

    def _together(self, waiting: dict[int, tuple[int, tuple[Any, ...]]]) -> dict[int, Any]:
        """Compute the earliest region for all samples that wait for it with the same shapes."""
        if not waiting:
            return {}
        key = min((number, _shapes(given)) for number, given in waiting.values())
        group = [i for i, (number, given) in waiting.items() if (number, _shapes(given)) == key]
        given = [waiting.pop(i)[1] for i in group]
        if len(group) == 1 or not any(isinstance(v, torch.Tensor) for v in given[0]):
            return {i: self._run(key[0], values, rows=False) for i, values in zip(group, given, strict=True)}
        columns = [
            torch.stack(values) if isinstance(values[0], torch.Tensor) else values[0]
            for values in zip(*given, strict=True)
        ]
        outputs = self._run(key[0], tuple(columns), rows=True)
        return {i: tuple(out[row] for out in outputs) for row, i in enumerate(group)}

    def _run(self, number: int, given: tuple[Any, ...], *, rows: bool) -> tuple[Any, ...]:
        key: list[Any] = [number, rows]
        tensors = []
        for value in given:
            if isinstance(value, torch.Tensor):
                tensors.append(value)
                key += (value.shape, value.dtype)
            else:
                key += (type(value), value)
        compiled = self._compiled.get(tuple(key))
        if compiled is None:
            compiled = self._compiled[tuple(key)] = self._compile(number, given, rows)
        return compiled(*tensors)

    def _compile(self, number: int, given: tuple[Any, ...], rows: bool) -> Function:
        place = self.regions[number].place
        fixed = {i: v for i, v in enumerate(given) if not isinstance(v, torch.Tensor)}
        if odd := next((v for v in fixed.values() if not isinstance(v, int | float | str | None)), None):
            raise SpecError(
                f"{place}: a {type(odd).__name__} is needed behind a branch",
                expected="tensors and numbers",
                fix="unpack it",
            )
        code = Code(self._module, self._bodies[number], fixed, place)
        if rows:
            each: Function = torch.vmap(code.forward)
            return each
        return self._backend.compile(code, [v for v in given if isinstance(v, torch.Tensor)])

    def _branch(self, number: int, value: Any) -> bool:
        taken = bool(value)
        self._taken[number, taken] += 1
        return taken

    def coverage(self) -> list[Way]:
        """Both sides of every branch, and how often each was taken: zero was never verified."""
        sides = ((i, place, side) for i, place in enumerate(self._places) for side in (True, False))
        return [Way(place, side, self._taken[i, side]) for i, place, side in sides]


def _form(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else (type(value), value)


def _shapes(given: tuple[Any, ...]) -> str:
    return repr([_form(v) for v in given])
