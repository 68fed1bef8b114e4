"""Which techniques exist, and the text that names one.

A kind is a folder whose `__init__` defines the Protocol it is named after (`serve/schedulers`: `Scheduler`).
Every public file beside that `__init__` is one technique; class `PrefillFirst` lives in `prefill_first.py`.
Listing reads folders and file headers and imports nothing; `parse` imports only what its text names.

    parse("Speculate(draft=Ngram(k=4))") == Speculate(draft=Ngram(k=4))     # which is also what repr prints

Another package adds a technique with an entry point "kind.Name" in the group `lightwork.techniques`:

    [project.entry-points."lightwork.techniques"]
    "scheduler.Mine" = "my_package.mine:Mine"
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lightwork._listing import Technique, find, kind_of, kinds, listing, nearest, short, snake
from lightwork.errors import LightworkError, SpecError

__all__ = ["Technique", "find", "holds", "kind_of", "kinds", "listing", "nearest", "parse", "parse_all"]

MAX_CHARS = 8192
MAX_DEPTH = 16
MAX_INT = 2**63


def parse(text: str, package: str = "lightwork") -> Any:
    """The technique object that a text names. The text is never evaluated: names and literals only.

    Raises SpecError, whatever the text; MissingExtraError if the technique needs a library that is not there.
    """
    if len(text) > MAX_CHARS:
        raise SpecError(f"a technique text of {len(text)} characters", expected=f"at most {MAX_CHARS}")
    try:
        with warnings.catch_warnings(action="error"):  # an invalid escape in a string is refused
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError, Warning) as error:
        reason = getattr(error, "msg", "") or type(error).__name__
        raise _refused(f"{short(text)} cannot be read: {reason}") from None
    if not isinstance(tree, ast.Name | ast.Call):
        raise _refused(f"{short(text)} does not name a technique")
    return _build(tree, package, 0)


def parse_all(uses: Iterable[object], package: str = "lightwork") -> list[Any]:
    """The techniques of a list of texts and objects. Raises SpecError if two of them are of one kind."""
    first: dict[str, str] = {}
    built = []
    for use in uses:
        technique = parse(use, package) if isinstance(use, str) else use
        kind = kind_of(technique, package)
        if kind in first:
            raise SpecError(
                f"{first[kind]} and {type(technique).__name__} are both of kind {kind}",
                expected=f"one {kind}",
                fix=f"leave one out: {first[kind]}",
            )
        first[kind] = type(technique).__name__
        built.append(technique)
    return built


def holds(technique: Technique, package: str = "lightwork") -> dict[str, str]:
    """The kinds that a technique takes another one of, each with the field that it goes in.

    Raises MissingExtraError if it needs a library that is not there.
    """
    cls = technique.load()
    hints = get_type_hints(cls)
    found = {f.name: _kind_named(get_origin(hints[f.name]) or hints[f.name], package) for f in _settable(cls)}
    return {kind: name for name, kind in found.items() if kind}


def _build(node: ast.expr, package: str, depth: int) -> Any:
    """The value of a node: a technique, a tuple, or a literal."""
    if depth > MAX_DEPTH:
        raise SpecError(f"a technique text nested more than {MAX_DEPTH} deep", expected="fewer parentheses")
    match node:
        case ast.Constant(value=bool() | str() | None as value):
            return value
        case ast.Constant(value=int() | float() as number):
            return _bounded(number)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            if not isinstance(number, bool):
                return -_bounded(number)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return -inf
        case ast.Name(id="inf") if depth:  # alone it would be a technique's name
            return inf
        case ast.Tuple(elts=elements):
            return tuple(_build(e, package, depth + 1) for e in elements)
        case ast.Name(id=name):
            return _construct(find(name, package), [], package, depth)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return _construct(find(name, package), keywords, package, depth)
        case ast.Call(func=ast.Name(id=name), args=[first, *_]):
            names = [f.name for f in _settable(find(name, package).load())]
            shown = f"{name}({names[0]}=...)" if names else f"{name}()"
            raise SpecError(
                f"{name} is given {_source(first)} without a field's name", expected=shown, fix=shown
            )
    raise _refused(f"{_source(node)} is not allowed here")


def _construct(technique: Technique, keywords: list[ast.keyword], package: str, depth: int) -> Any:
    cls, name = technique.load(), technique.name
    known = {f.name: f for f in _settable(cls)}
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError) as error:
        raise SpecError(f"the fields of {name} have types that cannot be read: {error}") from error
    given: dict[str, Any] = {}
    for keyword in keywords:
        field = keyword.arg
        if field is None or field in given:
            raise _refused(f"{name} is given {'**' if field is None else f'{field!r} twice'}")
        if field not in known:
            near = nearest(field, known)
            value = _source(keyword.value) if near else ""
            raise SpecError(
                f"{name} has no field {short(field)}",
                expected=", ".join(known) or "no fields",
                fix=f"{name}({near}={value})" if near else _example(name, known.values()),
            )
        value = _build(keyword.value, package, depth + 1)
        try:
            given[field] = _fit(value, hints[field], package)
        except _MisfitError:
            raise SpecError(
                f"{name}.{field} is {short(value)}",
                expected=_say(hints[field], package),
                fix=_example(name, [known[field]]),
            ) from None
    if lacking := [f for f in known if f not in given and _default(known[f]) is MISSING]:
        raise SpecError(f"{name} needs {', '.join(lacking)}", fix=_example(name, known.values()))
    try:
        return cls(**given)
    except LightworkError as error:
        raise SpecError(error.wrong, expected=error.expected, fix=error.fix) from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise SpecError(
            f"{name} refuses these values: {error}", fix=_example(name, known.values())
        ) from error


class _MisfitError(Exception):
    """A value is not of the type its field asks for."""


def _fit(value: Any, hint: Any, package: str) -> Any:
    """The value as its field's type wants it (an int given for a float becomes one)."""
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for arm in arms:
            try:
                return _fit(value, arm, package)
            except _MisfitError:
                continue
    elif origin is tuple and isinstance(value, tuple):
        if len(arms) == 2 and arms[1] is Ellipsis:
            return tuple(_fit(v, arms[0], package) for v in value)
        if len(arms) == len(value):
            return tuple(_fit(v, arm, package) for v, arm in zip(value, arms, strict=True))
    elif hint is float and type(value) is int:
        return float(value)
    elif (
        hint is Any
        or (origin is Literal and any(value == arm and type(value) is type(arm) for arm in arms))
        or (hint in (bool, int, float, str, tuple, NoneType) and type(value) is hint)
        or _is_of(value, origin or hint, package)
    ):
        return value
    raise _MisfitError


def _is_of(value: Any, cls: Any, package: str) -> bool:
    """Whether a nested technique is what a field of class or Protocol cls asks for."""
    if kind := _kind_named(cls, package):
        return kind_of(value, package) == kind
    return isinstance(cls, type) and is_dataclass(cls) and isinstance(value, cls)


def _kind_named(cls: Any, package: str) -> str:
    module = getattr(cls, "__module__", "")
    asked = snake(getattr(cls, "__name__", ""))
    return asked if kinds(package).get(asked) == module else ""


def _say(hint: Any, package: str) -> str:
    """A type in words."""
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_say(arm, package) for arm in arms)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arms))
    if kind := _kind_named(origin or hint, package):
        return f"a {kind}: " + ", ".join(t.name for t in listing(package) if t.kind == kind)
    return "None" if hint is NoneType else str(hint) if arms else getattr(hint, "__name__", str(hint))


def _settable(cls: type) -> list[Field[Any]]:
    return [f for f in fields(cls) if f.init]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _example(name: str, some: Iterable[Field[Any]]) -> str:
    shown = ((f.name, _default(f)) for f in some)
    return f"{name}({', '.join(f'{n}=' + ('...' if d is MISSING else repr(d)) for n, d in shown)})"


def _bounded(number: int | float) -> int | float:
    if isfinite(number) if isinstance(number, float) else abs(number) < MAX_INT:
        return number
    raise SpecError(
        "a number too large for any field", expected="integers below 2**63, finite floats, or inf"
    )


def _refused(wrong: str) -> SpecError:
    expected = "a name, or a name with fields: numbers, strings, True, False, None, tuples, techniques"
    return SpecError(wrong, expected=expected, fix="'Name(field=value)'")


def _source(node: ast.expr) -> str:
    try:
        return short(ast.unparse(node), quote=False)
    except (RecursionError, ValueError):
        return type(node).__name__
