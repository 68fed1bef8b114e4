"""Straight-line runs between conditions become regions; what is left is the host."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from lightwork.compile.dataflow import dynamic, live_before, live_in_loop, reads, tensor_names, writes
from lightwork.compile.expand import Program
from lightwork.compile.source import refuse


@dataclass(frozen=True, slots=True)
class Region:
    """Statements without branches. inputs, outputs: live names. place: file and line of the first."""

    number: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: str
    place: str

    @property
    def source(self) -> str:
        """A function of the root module and the inputs."""
        lines = "\n".join(f"    {line}" for line in self.body.splitlines())
        head = ", ".join(("self", *self.inputs))
        return f"def region_{self.number}({head}):\n{lines}\n    return ({', '.join(self.outputs)},)\n"


@dataclass
class Split:
    """The regions, the host's lines, and the place of each branch."""

    regions: list[Region] = field(default_factory=list)
    host: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)


def cut(program: Program) -> Split:
    """Regions and host of a program."""
    return _Cutter(program).split


class _Cutter:
    def __init__(self, program: Program) -> None:
        self.tensors = tensor_names(program.body, program.parameters)
        assigned = set().union(*(writes(s) for s in program.body))
        self.variables = assigned | set(program.parameters)
        self.split = Split()
        self.equal: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Region] = {}
        self.block(program.body, {program.result}, 1)
        self.line(1, f"return {program.result}")

    def line(self, depth: int, text: str) -> None:
        self.split.host.append("    " * depth + text)

    def block(self, body: list[ast.stmt], after: set[str], depth: int) -> None:
        """Write a block's host lines. after: names live behind it."""
        begun = len(self.split.host)
        run: list[ast.stmt] = []
        for i, s in enumerate(body):
            live = live_before(body[i + 1 :], after)
            if isinstance(s, ast.Assign) and dynamic(s.value, self.tensors):
                self.check(s)
                run.append(s)
                continue
            if isinstance(s, ast.Assign) and not self.touches(s, run):
                if writes(s) & live:
                    self.line(depth, ast.unparse(s))
                continue
            self.region(run, live_before(body[i:], after), depth)
            run = []
            if isinstance(s, ast.Assign):
                if writes(s) & live:
                    self.line(depth, ast.unparse(s))
            elif isinstance(s, ast.If):
                self.choice(s, live, depth)
            elif isinstance(s, ast.While):
                self.line(depth, f"while {self.test(s)}:")
                self.block(s.body, live_in_loop(s, live), depth + 1)
        self.region(run, after, depth)
        if len(self.split.host) == begun:
            self.line(depth, "pass")

    def choice(self, s: ast.If, live: set[str], depth: int) -> None:
        self.line(depth, f"if {self.test(s)}:")
        self.block(s.body, live, depth + 1)
        if s.orelse:
            self.line(depth, "else:")
            self.block(s.orelse, live, depth + 1)

    def touches(self, s: ast.Assign, run: list[ast.stmt]) -> bool:
        """Whether moving a host statement before the run would change what either sees."""
        read = set().union(*(reads(r) for r in run))
        written = set().union(*(writes(r) for r in run))
        return bool(reads(s) & written or writes(s) & (read | written))

    def check(self, s: ast.Assign) -> None:
        if getattr(s, "in_place", False):
            refuse(s, "an augmented assignment changes the tensor in place", "write x = x + y")
        for node in ast.walk(s.value):
            if isinstance(node, ast.Attribute) and node.attr == "item":
                refuse(s, ".item() outside of a condition", "keep the tensor")

    def test(self, s: ast.If | ast.While) -> str:
        """The host's test. Conditions of the source are recorded; flags of ours are not."""
        text = ast.unparse(s.test)
        if not reads(s.test) & self.tensors:
            return text
        self.split.branches.append(f"{getattr(s, 'file', '?')}:{getattr(s, 'lineno', 0)}")
        number = len(self.split.branches) - 1
        if isinstance(s.test, ast.UnaryOp):
            return f"not branch({number}, {ast.unparse(s.test.operand)})"
        return f"branch({number}, {text})"

    def region(self, run: list[ast.stmt], live: set[str], depth: int) -> None:
        """One region for a run, without what nobody reads; equal ones are one."""
        kept: list[ast.stmt] = []
        needed = set(live)
        for s in reversed(run):
            if writes(s) & needed:
                kept.insert(0, s)
                needed = (needed - writes(s)) | reads(s)
        if not kept:
            return
        written = set().union(*(writes(s) for s in kept))
        read = live_before(kept, set())
        inputs = tuple(sorted(read & self.variables))
        outputs = tuple(sorted(written & live))
        body = ast.unparse(ast.fix_missing_locations(ast.Module(kept, [])))
        key = (body, inputs, outputs)
        if key not in self.equal:
            place = f"{getattr(kept[0], 'file', '?')}:{getattr(kept[0], 'lineno', 0)}"
            self.equal[key] = Region(len(self.split.regions), inputs, outputs, body, place)
            self.split.regions.append(self.equal[key])
        number = self.equal[key].number
        self.line(depth, f"({', '.join(outputs)},) = yield {number}, ({''.join(f'{n}, ' for n in inputs)})")
