"""What a chat's tools make of its reply: the grammar of the calls that its body demands or allows."""

from __future__ import annotations

import json
from typing import Any

from lightwork.decode.constraints import Constraint
from lightwork.errors import UsageError
from lightwork.serve.call_grammar import Signature, demanded, free_or_strict
from lightwork.serve.http.constraints import constraint_of
from lightwork.serve.http.errors import HttpError, refused
from lightwork.serve.http.schemas import ChatBody, NamedChoice


def chat_constraint(body: ChatBody) -> Constraint | None:
    """What a chat's reply is held to; None: nothing. Raises HttpError for what does not go together."""
    answer = constraint_of(body)
    if not body.tools or not body.reads_calls:
        return answer
    try:
        return _with_tools(body, answer)
    except UsageError as error:
        raise HttpError(
            400, error.wrong, expected=error.expected, fix="leave tools out", param="tools"
        ) from error


def _with_tools(body: ChatBody, answer: Constraint | None) -> Constraint | None:
    functions = [
        Signature(tool.function.name, tool.function.parameters, tool.function.strict)
        for tool in body.tools or ()
    ]
    many, instead = body.parallel_tool_calls is not False, None if answer is None else _answer(answer)
    if isinstance(body.tool_choice, NamedChoice):
        name = body.tool_choice.function.name
        return demanded([f for f in functions if f.name == name], many=False)
    if body.tool_choice == "required":
        return demanded(functions, many=many)
    if instead is not None:
        return demanded(functions, many=many, instead=instead)
    return free_or_strict(functions, many=many)


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
