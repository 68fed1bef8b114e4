"""Early exits as nested ifs with flags; conditions as names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import count

from lightwork.compile.source import refuse


def load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def assign(name: str, value: ast.expr, at: ast.AST) -> ast.Assign:
    """`name = value`, with the place of another node."""
    made = ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], value), at)
    made.file = getattr(at, "file", "?")  # type: ignore[attr-defined]
    return made


def branch(test: ast.expr, then: list[ast.stmt], other: list[ast.stmt], at: ast.AST) -> ast.If:
    made = ast.copy_location(ast.If(test, then, other), at)
    made.file = getattr(at, "file", "?")  # type: ignore[attr-defined]
    return made


def negation(name: str) -> ast.expr:
    return ast.UnaryOp(ast.Not(), load(name))


class Names:
    """Names that no other variable has."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.made: set[str] = set()

    def fresh(self, stem: str) -> str:
        """The stem with the least number that makes it new."""
        name = next(n for n in (f"{stem}_{i}" for i in count()) if n not in self.taken)
        self.taken.add(name)
        self.made.add(name)
        return name


def exits(body: list[ast.stmt], kind: type[ast.stmt]) -> bool:
    """Whether a return, or a break or continue of this loop, is inside."""
    return any(_exits(s, kind) for s in body)


def _exits(s: ast.stmt, kind: type[ast.stmt]) -> bool:
    if isinstance(s, kind):
        return True
    if isinstance(s, ast.If):
        return exits(s.body, kind) or exits(s.orelse, kind)
    return isinstance(s, ast.For | ast.While) and kind is ast.Return and exits(s.body, kind)


def flagged(body: list[ast.stmt], kind: type[ast.stmt], flag: str, result: str = "") -> list[ast.stmt]:
    """The same statements, where an exit sets the flag and all that follows is guarded by it."""
    done: list[ast.stmt] = []
    for i, s in enumerate(body):
        if isinstance(s, kind):
            if isinstance(s, ast.Return):
                done.append(assign(result, s.value or ast.Constant(None), s))
            return [*done, assign(flag, ast.Constant(True), s)]
        if not _exits(s, kind):
            done.append(s)
            continue
        if isinstance(s, ast.If):
            then = flagged(s.body, kind, flag, result)
            done.append(branch(s.test, then or [ast.Pass()], flagged(s.orelse, kind, flag, result), s))
        elif isinstance(s, ast.While):
            inner = flagged(s.body, kind, flag, result)
            s.test, s.body = ast.copy_location(ast.BoolOp(ast.And(), [negation(flag), s.test]), s), inner
            done.append(s)
        elif isinstance(s, ast.For):
            s.body = [branch(negation(flag), flagged(s.body, kind, flag, result), [], s)]
            done.append(s)
        rest = flagged(body[i + 1 :], kind, flag, result)
        return [*done, branch(negation(flag), rest, [], s)] if rest else done
    return done


class Ternaries(ast.NodeTransformer):
    """Takes ternaries and, or, not out of an expression, as ifs before it."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.before: list[ast.stmt] = []

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        name = self.names.fresh("value")
        before, test = condition(node.test, self.names)
        one, other = (list(value(v, name, self.names)) for v in (node.body, node.orelse))
        self.before += [*before, branch(test, one, other, node)]
        return load(name)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        before, test = condition(node, self.names)
        self.before += before
        return test

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            refuse(node, "`not` outside of a condition", "use ~ for tensors")
        return self.generic_visit(node)


def value(node: ast.expr, name: str, names: Names) -> Iterator[ast.stmt]:
    """`name = node`, with the ifs that it takes."""
    taken = Ternaries(names)
    rest = taken.visit(node)
    yield from taken.before
    yield assign(name, rest, node)


def condition(node: ast.expr, names: Names) -> tuple[list[ast.stmt], ast.expr]:
    """Statements that compute a condition, and the name that then holds it, or its `not`."""
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            before, test = condition(inner, names)
            if isinstance(test, ast.UnaryOp):
                return before, test.operand
            return before, ast.UnaryOp(ast.Not(), test)
        case (
            ast.Call(func=ast.Name(id="bool"), args=[inner])
            | ast.Call(func=ast.Attribute(value=inner, attr="item"), args=[])
        ):
            return condition(inner, names)
        case ast.Compare(ops=[_, _, *_]):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            parts = [ast.copy_location(ast.Compare(a, [op], [b]), node) for a, op, b in pairs]
            return condition(ast.copy_location(ast.BoolOp(ast.And(), list(parts)), node), names)
        case ast.BoolOp(op=op, values=[first, *others]):
            name = names.fresh("p")
            steps = _truth(first, name, names)
            for other in others:
                test = load(name) if isinstance(op, ast.And) else negation(name)
                steps.append(branch(test, _truth(other, name, names), [], other))
            return steps, load(name)
        case ast.Name():
            return [], node
    name = names.fresh("p")
    return list(value(_plain(node), name, names)), load(name)


def _truth(node: ast.expr, name: str, names: Names) -> list[ast.stmt]:
    before, test = condition(node, names)
    if isinstance(test, ast.UnaryOp):
        yes, no = assign(name, ast.Constant(False), node), assign(name, ast.Constant(True), node)
        return [*before, branch(test.operand, [yes], [no], node)]
    return [*before, assign(name, test, node)]


def _plain(node: ast.expr) -> ast.expr:
    """A comparison of `t.item()` is that of `t`: only its truth is asked for."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for i, side in enumerate(sides):
            match side:
                case ast.Call(func=ast.Attribute(value=inner, attr="item"), args=[]):
                    sides[i] = ast.Call(ast.Attribute(inner, "double", ast.Load()), [], [])  # as item() does
        node.left, node.comparators = sides[0], sides[1:]
    return node
