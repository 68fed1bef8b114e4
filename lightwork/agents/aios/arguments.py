"""Whether arguments fit a tool's schema: the part of JSON schema in which tools are described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": (list, tuple),
    "object": Mapping,
    "null": type(None),
}


def misfit(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """What is wrong with a call's arguments, in words; "" if nothing is.

    Checks names, required ones, types, choices and items; what else a schema may ask for is the tool's.
    """
    known = schema.get("properties", {})
    if lacking := [name for name in schema.get("required", ()) if name not in arguments]:
        return f"{', '.join(map(repr, lacking))} not given"
    for name, value in arguments.items():
        if name not in known:
            return f"no parameter is called {name!r}; there are {', '.join(known) or 'none'}"
        if wrong := _misfit(known[name], value):
            return f"{name!r} {wrong}"
    return ""


def _misfit(schema: Mapping[str, Any], value: Any) -> str:
    allowed = schema.get("type", ())
    names: Sequence[str] = [allowed] if isinstance(allowed, str) else allowed
    if names and not any(_is(value, name) for name in names):
        return f"is {value!r:.60}, not {' or '.join(names)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"is {value!r:.60}, not one of {', '.join(map(repr, schema['enum']))}"
    if isinstance(value, list | tuple) and "items" in schema:
        for i, item in enumerate(value):
            if wrong := _misfit(schema["items"], item):
                return f"item {i} {wrong}"
    if isinstance(value, Mapping) and "properties" in schema:
        return misfit(schema, value)
    return ""


def _is(value: Any, name: str) -> bool:
    """Strings and integers are just that: a subclass may say that it equals whatever it is compared with."""
    if isinstance(value, bool):  # which Python counts among the integers
        return name == "boolean"
    if name in ("string", "integer"):
        return type(value) is TYPES[name]
    return name in TYPES and isinstance(value, TYPES[name])
