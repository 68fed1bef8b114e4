"""The syntax tree of a function with the lines of its file, and refusals that name them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import NoReturn

from lightwork.errors import SpecError

REFUSED: dict[type[ast.AST], str] = {
    ast.Yield: "a generator",
    ast.YieldFrom: "a generator",
    ast.Await: "a coroutine",
    ast.Lambda: "a lambda",
    ast.FunctionDef: "a nested function",
    ast.Try: "try",
    ast.With: "with",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.NamedExpr: "an assignment inside an expression",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a generator",
    ast.Delete: "del",
    ast.Match: "match",
    ast.Raise: "raise",
    ast.Assert: "assert",
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.Starred: "a starred expression",
}
CALLS = {
    "exec",
    "eval",
    "print",
    "setattr",
    "locals",
    "globals",
    "int",
    "float",
    "open",
    "super",
    "next",
    "iter",
}
METHODS = {"tolist", "numpy", "append", "extend", "pop", "insert", "update", "clear", "backward"}


def refuse(
    node: ast.AST, why: str, fix: str = "rewrite it as plain assignments, if, for and while"
) -> NoReturn:
    """Raise SpecError with the file and line of a node that `parse` gave."""
    place = f"{getattr(node, 'file', '?')}:{getattr(node, 'lineno', 0)}"
    raise SpecError(f"{place}: {why}", expected="a forward without side effects", fix=fix)


def parse(function: Callable[..., object]) -> ast.FunctionDef:
    """The checked syntax tree of a function. Its nodes keep their line, and their file as `file`."""
    function = inspect.unwrap(function)
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise SpecError(
            f"no source of {function!r}", expected="a function in a file", fix="save it"
        ) from error
    file = inspect.getsourcefile(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first - 1)
    for node in ast.walk(tree):
        node.file = file  # type: ignore[attr-defined]
    found = tree.body[0]
    if not isinstance(found, ast.FunctionDef):
        refuse(found, "not a plain function")
    if found.args.vararg or found.args.kwarg or found.args.kwonlyargs:
        refuse(found, "only positional parameters can be rewritten")
    if found.decorator_list or getattr(function, "__closure__", None):
        refuse(found, "decorators and closures are not followed")
    for statement in found.body:
        for node in ast.walk(statement):
            _check(node)
    return found


def _check(node: ast.AST) -> None:
    if why := REFUSED.get(type(node)):
        refuse(node, f"{why} cannot be split")
    if isinstance(node, ast.For | ast.While) and node.orelse:
        refuse(node, "else of a loop cannot be split")
    if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
        refuse(node, "it stores into an object: a side effect")
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in CALLS:
            refuse(node, f"{name}() cannot be split")
        case ast.Call(func=ast.Attribute(attr=name)) if name in METHODS or (
            name.endswith("_") and not name.endswith("__")
        ):
            refuse(node, f".{name}() has a side effect or leaves torch")
