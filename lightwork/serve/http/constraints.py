"""What a body asks of the whole output: `response_format`, or `structured_outputs` as vLLM's users write it.

Whatever is not understood here is refused: a reply without the form that was asked for is worse than none.
"""

from __future__ import annotations

import json
from typing import Any

from lightwork.decode.constraints import Constraint, Kind
from lightwork.errors import ConstraintError
from lightwork.serve.http.errors import HttpError, refused
from lightwork.serve.http.schemas import Body

ONE_OF: dict[str, Kind] = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "lark",
}
"""Fields of `structured_outputs`; before vLLM 0.12 each was a field of its own, `guided_json` and so on."""
HARMLESS: dict[str, tuple[Any, ...]] = {
    "disable_fallback": (True, False),
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
}
"""What else vLLM has there, and the values that change nothing."""


def constraint_of(body: Body) -> Constraint | None:
    """None if the output may be anything. Raises HttpError, naming the field, for what is not understood."""
    found = [(field, c) for field, c in _asked(body) if c is not None]
    if len(found) > 1:
        fields = " and ".join(field for field, _ in found)
        raise refused(found[1][0], f"is one too many: {fields} are given", expected="one of them")
    return found[0][1] if found else None


def refused_constraint(body: Body, error: ConstraintError) -> HttpError:
    """The same, with the field that it is about: nothing else than tools asks for one beside these."""
    field = next((field for field, c in _asked(body) if c is not None), "tools")
    return HttpError(
        400, error.wrong, expected=error.expected, fix=error.fix, param=field, code=type(error).__name__
    )


def _asked(body: Body) -> list[tuple[str, Constraint | None]]:
    asked = [
        ("response_format", _response_format(body.response_format)),
        ("structured_outputs", _structured_outputs("structured_outputs", body.structured_outputs)),
    ]
    for name in ("json", "regex", "choice", "grammar"):
        value = getattr(body, f"guided_{name}")
        if value is not None:
            asked.append((f"guided_{name}", _structured_outputs(f"guided_{name}", {name: value})))
    return asked


def _response_format(asked: dict[str, Any] | None) -> Constraint | None:
    if asked is None or asked.get("type") == "text":
        return None
    kind, schema = asked.get("type"), asked.get("schema")
    if kind == "json_object" and schema is None:
        return Constraint(kind="json_object")
    if kind == "json_schema":
        schema = asked.get("json_schema")
        schema = schema.get("schema") if isinstance(schema, dict) else None
        if schema is None:
            raise refused(
                "response_format",
                "has no schema",
                expected='{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
            )
    elif kind != "json_object":
        raise refused(
            "response_format",
            f"is of type {str(kind)[:40]!r}",
            expected="text, json_object or json_schema",
        )
    return _schema("response_format", schema)


def _structured_outputs(field: str, asked: dict[str, Any] | None) -> Constraint | None:
    if asked is None:
        return None
    given = {name: value for name, value in asked.items() if value is not None and value is not False}
    for name in [*given]:
        if name in HARMLESS and given[name] in HARMLESS[name]:
            del given[name]
    unknown = next((name for name in given if name not in ONE_OF), None)
    if unknown is not None:
        raise refused(field, f"holds {unknown[:40]!r}", expected=" or ".join(ONE_OF))
    if len(given) > 1:
        raise refused(field, f"holds {' and '.join(given)}", expected="one of them")
    if not given:
        raise refused(field, "asks for nothing", expected=" or ".join(ONE_OF))
    ((name, value),) = given.items()
    kind = ONE_OF[name]
    if kind == "json_object":
        return Constraint(kind=kind)
    if kind == "json_schema":
        return _schema(field, value)
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise refused(field, "has no choice", expected="a list of strings")
        return Constraint(kind=kind, text=json.dumps(value))
    if not isinstance(value, str):
        raise refused(field, f"has a {name} that is no string", expected="a string")
    return Constraint(kind=kind, text=value)


def _schema(field: str, schema: Any) -> Constraint:
    """A schema as JSON; its text is taken as it is."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
    except RecursionError:
        raise refused(field, "nests too deeply", expected="a few levels") from None
    return Constraint(kind="json_schema", text=text)
