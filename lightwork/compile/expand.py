"""What is known before any input: loops unrolled, conditions folded, branching callees inlined."""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lightwork.compile import desugar
from lightwork.compile.dataflow import writes
from lightwork.compile.desugar import Names, assign, branch, condition, exits, flagged, load
from lightwork.compile.source import parse, refuse

PURE = {
    "len",
    "range",
    "enumerate",
    "zip",
    "reversed",
    "min",
    "max",
    "abs",
    "isinstance",
    "list",
    "tuple",
    "bool",
}
MOST_ITERATIONS = 4096


@dataclass
class Program:
    """A forward as assignments, ifs and whiles. globals: what its expressions name besides variables."""

    module: nn.Module
    parameters: list[str]
    defaults: dict[str, Any]
    body: list[ast.stmt]
    result: str
    names: Names
    globals: dict[str, Any] = field(default_factory=dict)


def expand(module: nn.Module) -> Program:
    """The module's forward, rewritten. Raises SpecError, with file and line, for what cannot be."""
    tree = parse(type(module).forward)
    names = Names({n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {a.arg for a in tree.args.args})
    parameters = [a.arg for a in tree.args.args[1:]]
    values = [ast.literal_eval(d) for d in tree.args.defaults]
    defaults = dict(zip(reversed(parameters), reversed(values), strict=False))
    program = Program(module, parameters, defaults, [], names.fresh("result"), names)
    _Function(program, type(module).forward, module, inlined=False).write(tree, program.result, program.body)
    return program


def branches(module: nn.Module) -> bool:
    """Whether a class of the module, or of one inside, decides anything in its code."""
    return any(_decides(type(m)) for m in module.modules())


def _decides(cls: type) -> bool:
    if cls.__module__.startswith("torch."):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return True
    methods = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name != "__init__")
    return any(isinstance(n, ast.If | ast.While | ast.IfExp) for m in methods for n in ast.walk(m))


class _Function(ast.NodeTransformer):
    """One call of a function: its variables, and those of its values that are known."""

    def __init__(
        self, program: Program, function: Callable[..., Any], owner: object, *, inlined: bool
    ) -> None:
        self.program, self.names, self.inlined = program, program.names, inlined
        self.globals = function.__globals__
        self.known: dict[str, Any] = {"self": owner} if owner is not None else {}
        self.renamed: dict[str, str] = {}
        self.once: set[str] = set()
        self.out: list[ast.stmt] = []

    def write(self, tree: ast.FunctionDef, result: str, out: list[ast.stmt]) -> None:
        """Append the function's statements, with its result under that name."""
        stored = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        top = [
            s.targets[0].id
            for s in tree.body
            if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)
        ]
        self.once = {n for n in top if stored.count(n) == 1}
        for name in {*stored, *(a.arg for a in tree.args.args)} - {"self"}:
            self.renamed.setdefault(name, self.names.fresh(name) if self.inlined else name)
        self.names.taken |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        flag = self.names.fresh("done")
        self.renamed |= {flag: flag, result: result}
        body = [assign(flag, ast.Constant(False), tree), *flagged(tree.body, ast.Return, flag, result)]
        self.block(body, out)

    def block(self, body: list[ast.stmt], out: list[ast.stmt]) -> None:
        kept, self.out = self.out, out
        for statement in body:
            self.statement(statement)
        self.out = kept

    def statement(self, s: ast.stmt) -> None:
        match s:
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                return
            case ast.Assign(targets=[ast.Name(id=name)], value=given):
                self.assignment(name, given, s)
            case ast.Assign(targets=[ast.Tuple() as targets], value=given):
                self.out.append(ast.copy_location(ast.Assign([self.visit(targets)], self.computed(given)), s))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as given):
                self.assignment(name, given, s)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=given):
                total = ast.copy_location(ast.BinOp(load(name), op, given), s)
                self.assignment(name, total, s)
                self.out[-1].in_place = True  # type: ignore[attr-defined]
            case ast.If():
                self.conditional(s)
            case ast.For():
                self.unrolled(s)
            case ast.While():
                self.loop(s)
            case _:
                refuse(s, "a statement for its side effect, or of a kind that cannot be split")

    def assignment(self, name: str, given: ast.expr, s: ast.stmt) -> None:
        if name in self.once:
            found, value = self.value(given)
            if found:
                self.known[name] = value
                return
        visited = self.computed(given)
        self.out.append(assign(self.rename(name), visited, s))

    def computed(self, given: ast.expr) -> ast.expr:
        """The expression with ternaries, known values and calls that branch taken out, before it."""
        taken = desugar.Ternaries(self.names)
        rest = taken.visit(given)
        self.block(taken.before, self.out)
        visited: ast.expr = self.visit(rest)
        return visited

    def conditional(self, s: ast.If) -> None:
        found, value = self.value(s.test)
        if found:
            self.block(s.body if value else s.orelse, self.out)
            return
        before, test = condition(self.unknown(s.test), self.names)
        self.block(before, self.out)
        then: list[ast.stmt] = []
        other: list[ast.stmt] = []
        self.block(s.body, then)
        self.block(s.orelse, other)
        self.out.append(branch(self.visit(test), then, other, s))

    def loop(self, s: ast.While) -> None:
        body, first = self.with_flags(s)
        self.block(first, self.out)
        before, test = condition(s.test, self.names)
        inner: list[ast.stmt] = []
        again = copy.deepcopy(before)
        self.block(before, self.out)
        self.block([*body, *again], inner)
        made = ast.copy_location(ast.While(self.visit(test), inner, []), s)
        made.file = s.file  # type: ignore[attr-defined]
        self.out.append(made)

    def with_flags(self, s: ast.For | ast.While) -> tuple[list[ast.stmt], list[ast.stmt]]:
        """The loop's body without break and continue, and what to set before the loop."""
        body = s.body
        first: list[ast.stmt] = []
        if exits(body, ast.Continue):
            flag = self.names.fresh("skip")
            body = [assign(flag, ast.Constant(False), s), *flagged(body, ast.Continue, flag)]
        if exits(body, ast.Break):
            flag = self.names.fresh("stop")
            first = [assign(flag, ast.Constant(False), s)]
            body = flagged(body, ast.Break, flag)
            if isinstance(s, ast.While):
                s.test = ast.copy_location(ast.BoolOp(ast.And(), [desugar.negation(flag), s.test]), s)
            else:
                body = [branch(desugar.negation(flag), body, [], s)]
        return body, first

    def unrolled(self, s: ast.For) -> None:
        found, value = self.value(s.iter)
        if not found:
            refuse(s, "a loop over what is known only at run time", "use while, or a fixed number of steps")
        items = list(value)
        if len(items) > MOST_ITERATIONS:
            refuse(s, f"{len(items)} iterations to unroll", f"use while above {MOST_ITERATIONS}")
        body, first = self.with_flags(s)
        self.block(first, self.out)
        for item in items:
            self.bind(s.target, item)
            self.block(copy.deepcopy(body), self.out)

    def bind(self, target: ast.expr, item: Any) -> None:
        if isinstance(target, ast.Tuple):
            for part, value in zip(target.elts, item, strict=True):
                self.bind(part, value)
        elif isinstance(target, ast.Name) and not isinstance(item, torch.Tensor):
            self.known[target.id] = item
        else:
            refuse(target, "a loop variable that is a tensor or not a name")

    def rename(self, name: str) -> str:
        self.known.pop(name, None)
        return self.renamed.setdefault(name, name)

    def value(self, node: ast.expr) -> tuple[bool, Any]:
        """Whether an expression is known, and its value."""
        if isinstance(node, ast.BoolOp):
            return self.bool_value(node)
        inside = list(ast.walk(node))
        names = {n.id for n in inside if isinstance(n, ast.Name)}
        calls = [n.func for n in inside if isinstance(n, ast.Call)]
        if any(n not in self.known and (n in self.renamed or n not in PURE) for n in names):
            return False, None
        if any(not (isinstance(f, ast.Name) and f.id in PURE) for f in calls):
            return False, None
        code = compile(ast.fix_missing_locations(ast.Expression(copy.deepcopy(node))), "<known>", "eval")
        found = eval(code, {"__builtins__": builtins}, self.known)
        return not isinstance(found, torch.Tensor), found

    def bool_value(self, node: ast.BoolOp) -> tuple[bool, Any]:
        settles = isinstance(node.op, ast.Or)
        rest = []
        for part in node.values:
            found, value = self.value(part)
            if found and bool(value) is settles:
                return True, value
            if not found:
                rest.append(part)
        return (True, not settles) if not rest else (False, None)

    def unknown(self, node: ast.expr) -> ast.expr:
        """A condition without the parts that are known, which do not settle it."""
        if not isinstance(node, ast.BoolOp):
            return node
        rest = [part for part in node.values if not self.value(part)[0]]
        return rest[0] if len(rest) == 1 else ast.copy_location(ast.BoolOp(node.op, rest), node)

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store):
            found, value = self.value(node)
            if found and (known := self.written(value)) is not None:
                return ast.copy_location(known, node)
        return super().visit(node)

    def written(self, value: Any) -> ast.expr | None:
        """An expression from the root module, or a constant, for a known value."""
        if isinstance(value, nn.Module):
            path = next((n for n, m in self.program.module.named_modules() if m is value), None)
            if path is None:
                return None
            expression: ast.expr = load("self")
            for part in filter(None, path.split(".")):
                key = ast.Constant(int(part)) if part.isdigit() else None
                expression = (
                    ast.Subscript(expression, key, ast.Load())
                    if key
                    else ast.Attribute(expression, part, ast.Load())
                )
            return expression
        return ast.Constant(value) if isinstance(value, bool | int | float | str | None) else None

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.renamed:
            return ast.copy_location(ast.Name(self.renamed[node.id], node.ctx), node)
        if node.id in self.names.made:
            return node
        if node.id not in self.globals and not hasattr(builtins, node.id):
            refuse(node, f"{node.id} is not known here")
        if node.id in self.globals:
            held = self.program.globals.setdefault(node.id, self.globals[node.id])
            if held is not self.globals[node.id]:
                refuse(node, f"{node.id} means two things in two files", "name them apart")
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        owner, function = self.callee(node.func)
        if function is None:
            return self.generic_visit(node)
        if node.keywords:
            refuse(node, "keywords in a call of code that branches", "pass by position")
        tree = parse(function)
        called = _Function(self.program, function, owner, inlined=True)
        parameters = [a.arg for a in tree.args.args[owner is not None :]]
        missing = len(parameters) - len(node.args)
        given = [*node.args, *(tree.args.defaults[-missing:] if missing > 0 else [])]
        if len(given) != len(parameters):
            refuse(node, "the arguments do not fit")
        for name, argument in zip(parameters, given, strict=True):
            found, value = self.value(argument)
            if found and name not in writes(tree):
                called.known[name] = value
                continue
            called.renamed[name] = self.names.fresh(name)
            self.out.append(assign(called.renamed[name], self.computed(argument), node))
        result = self.names.fresh("result")
        called.write(tree, result, self.out)
        return load(result)

    def callee(self, func: ast.expr) -> tuple[Any, Callable[..., Any] | None]:
        """The module and the function to inline, if this call is of code of the user's that branches."""
        found, value = self.value(func)
        if not found and isinstance(func, ast.Name) and func.id not in self.renamed:
            target = self.globals.get(func.id)
            if inspect.isfunction(target) and not target.__module__.startswith("torch"):
                return None, target
        if found and isinstance(value, nn.Module) and branches(value):
            if type(value).__module__.startswith("torch."):
                refuse(
                    func,
                    f"a {type(value).__name__} around a module that branches",
                    "call its parts in a loop",
                )
            return value, type(value).forward
        if found and inspect.ismethod(value) and isinstance(value.__self__, nn.Module):
            return value.__self__, value.__func__
        return None, None
