"""The grammar that holds a model to the calls that a chat may make, in the Lark dialect of llguidance.

A model is held to it where the request demands a call (`required`, or a named function), where a function is
`strict`, where there may be only one call, and where text has a form of its own. Otherwise it is free to
call, and what it wrote is handed on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lightwork.decode.constraints import SPACE, Constraint
from lightwork.serve.http.calls import BEGIN, END
from lightwork.serve.http.constraints import constraint_of
from lightwork.serve.http.errors import refused
from lightwork.serve.http.schemas import ChatBody, Function, NamedChoice

_ANY = r"TEXT: /(.|\n)*/"
AS_TEMPLATES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Arguments are spaced as `tojson` does: as the calls were that models were trained on."""
FREELY = {"whitespace_pattern": SPACE}
"""Of an answer, as where there are no tools."""


def chat_constraint(body: ChatBody) -> Constraint | None:
    """What a chat's reply is held to; None: nothing. Raises HttpError for what does not go together."""
    answer = constraint_of(body)
    functions = [tool.function for tool in body.tools or ()]
    if not functions or not body.reads_calls:
        return answer
    many, instead = body.parallel_tool_calls is not False, None if answer is None else _answer(answer)
    if isinstance(body.tool_choice, NamedChoice):
        name = body.tool_choice.function.name
        return _lark(_calls([f for f in functions if f.name == name], many=False))
    if body.tool_choice == "required":
        return _lark(_calls(functions, many=many))
    if instead is not None:
        return _lark(_calls(functions, many=many, instead=instead))
    if many and not any(f.strict for f in functions):
        return None
    return _lark(_text_or_calls(functions, many=many))


def _lark(rules: Sequence[str]) -> Constraint:
    return Constraint(kind="lark", text="\n".join(rules))


def _calls(functions: Sequence[Function], *, many: bool, instead: dict[str, Any] | None = None) -> list[str]:
    """One call or more and nothing else, or JSON of a schema instead."""
    calls = 'call ("\\n" call)*' if many else "call"
    if instead is None:
        return [f"start: {calls}", *_rules(functions, BEGIN)]
    return [
        f"start: answer | {calls}",
        f"answer: %json {_written(instead, FREELY)}",
        *_rules(functions, BEGIN),
    ]


def _text_or_calls(functions: Sequence[Function], *, many: bool) -> list[str]:
    """Text in which calls may stand. Where a call begins, text ends at once: that is what lazy means."""
    whole = "(begin call)* TEXT" if many else "TEXT | begin call"
    begin = f"begin[lazy]: TEXT {json.dumps(BEGIN)}"
    return [f"start: {whole}", begin, _ANY, *_rules(functions, "", loosely=True)]


def _rules(functions: Sequence[Function], begin: str, *, loosely: bool = False) -> list[str]:
    """The rule `call` and what it needs. loosely: only strict functions' arguments follow their schemas."""
    rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(functions)))]
    for i, function in enumerate(functions):
        head = json.dumps(f'{begin}\n{{"name": {json.dumps(function.name)}, "arguments": ')
        tail = json.dumps(f"}}\n{END}")
        schema = {"type": "object"} if loosely and not function.strict else _schema(function)
        rules.append(f"call_{i}: {head} arguments_{i} {tail}")
        rules.append(f"arguments_{i}: %json {_written(schema, AS_TEMPLATES)}")
    return rules


def _schema(function: Function) -> dict[str, Any]:
    """Of its arguments, which are an object; a function without any takes none."""
    if function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if function.parameters.get("type", "object") != "object":
        raise refused(
            "tools", f"hold {function.name!r}, whose parameters are no object", expected="an object"
        )
    return {"type": "object", **function.parameters}


def _answer(asked: Constraint) -> dict[str, Any]:
    """The schema of a reply that calls nothing."""
    if asked.kind == "json_object":
        return {"type": "object"}
    try:
        schema = json.loads(asked.text) if asked.kind == "json_schema" else None
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise refused(
            "tools",
            f"and a reply held to a {asked.kind} of this form do not go together",
            expected='an object as JSON schema, or tool_choice "none"',
        )
    return schema


def _written(schema: dict[str, Any], how: dict[str, Any]) -> str:
    """A schema with how its JSON is spaced. A keyword that is not understood is refused, not left out."""
    try:
        return json.dumps({**schema, "x-guidance": {**how, "lenient": False}})
    except RecursionError:
        raise refused("tools", "nest too deeply", expected="a few levels") from None
