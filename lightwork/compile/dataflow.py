"""Which expressions depend on tensors' values, and which names are live."""

from __future__ import annotations

import ast
from collections.abc import Iterable

SHAPES = {"shape", "ndim", "dtype", "device", "size", "dim", "numel"}
HOST_CALLS = {"len", "range", "min", "max", "abs", "bool"}


def reads(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def writes(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def dynamic(node: ast.AST, tensors: set[str]) -> bool:
    """Whether a value depends on what a tensor holds, not on its shape alone."""
    match node:
        case ast.Attribute(value=ast.Name(), attr=name) if name in SHAPES:
            return False
        case ast.Call(func=ast.Attribute() as func, args=arguments):
            return func.attr not in SHAPES or any(dynamic(a, tensors) for a in arguments)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return name not in HOST_CALLS or any(dynamic(a, tensors) for a in arguments)
        case ast.Call():
            return True
        case ast.Name(id=name, ctx=ast.Load()):
            return name in tensors or name == "self"
    return any(dynamic(child, tensors) for child in ast.iter_child_nodes(node))


def tensor_names(body: list[ast.stmt], parameters: Iterable[str]) -> set[str]:
    """Names that may hold a value computed from a tensor's: forward data flow, to its fixed point."""
    tensors = set(parameters)
    assigned = [n for s in body for n in ast.walk(s) if isinstance(n, ast.Assign)]
    while True:
        more = {name for s in assigned if dynamic(s.value, tensors) for name in writes(s)}
        if more <= tensors:
            return tensors
        tensors |= more


def live_before(body: list[ast.stmt], after: set[str]) -> set[str]:
    """Names whose values are read later, before these statements."""
    live = set(after)
    for s in reversed(body):
        if isinstance(s, ast.If):
            live = live_before(s.body, live) | live_before(s.orelse, live) | reads(s.test)
        elif isinstance(s, ast.While):
            live = live_in_loop(s, live)
        else:
            live = (live - writes(s)) | reads(s)
    return live


def live_in_loop(s: ast.While, after: set[str]) -> set[str]:
    """Names live at a loop's test."""
    live = after | reads(s.test)
    while (more := live | live_before(s.body, live)) != live:
        live = more
    return live
