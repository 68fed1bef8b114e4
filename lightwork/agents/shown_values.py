"""Any value as the text that a model reads, no longer than it may be: JSON as far as that goes.

Nothing is formatted beyond the cut, so an answer of 100 MB costs what its first part does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

LONGEST_ANSWER = 1 << 20
"""Characters that are shown; a longer answer is cut, and says so."""
DEEPEST = 50
"""Levels of lists and objects in each other."""
PLAIN = (str, bool, int, float, type(None))


def shown(value: Any, most: int = LONGEST_ANSWER) -> str:
    """value: anything; what JSON does not know is shown by its `str`."""
    if isinstance(value, str):
        return value if len(value) <= most else f"{value[:most]} ... (cut: {len(value):,} characters)"
    pieces, size = [], 0
    for piece in _pieces(value, most, DEEPEST):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            return f"{''.join(pieces)[:most]} ... (cut after {most:,} characters)"
    return "".join(pieces)


def _pieces(value: Any, most: int, depth: int) -> Iterator[str]:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        yield json.dumps(value[: most + 1], ensure_ascii=False)
    elif isinstance(value, PLAIN):
        yield _number(value)
    elif not depth:
        yield "..."
    elif isinstance(value, Mapping):
        yield from _object(value.items(), most, depth)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from _list(value, most, depth)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        yield from _object(named, most, depth)
    elif hasattr(type(value), "model_fields"):  # of pydantic
        yield from _object(iter(value), most, depth)
    else:
        yield json.dumps(_text(value)[: most + 1], ensure_ascii=False) if depth < DEEPEST else _text(value)


def _object(named: Any, most: int, depth: int) -> Iterator[str]:
    before = "{"
    for name, value in named:
        yield f"{before}{json.dumps(_text(name)[: most + 1], ensure_ascii=False)}: "
        yield from _pieces(value, most, depth - 1)
        before = ", "
    yield "{}" if before == "{" else "}"


def _list(values: Any, most: int, depth: int) -> Iterator[str]:
    before = "["
    for value in values:
        yield before
        yield from _pieces(value, most, depth - 1)
        before = ", "
    yield "[]" if before == "[" else "]"


def _number(value: Any) -> str:
    try:
        return json.dumps(value)
    except ValueError:  # more digits than Python writes
        return f'"an integer of {value.bit_length():,} bits"'


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"a {type(value).__name__} that cannot be shown: {type(error).__name__}"
