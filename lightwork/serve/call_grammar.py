"""The grammar that holds a model to the calls it may make, in the Lark dialect of llguidance.

A model is held to it where a call is demanded, where a function is `strict`, where there may be only one
call, and where text has a form of its own. Otherwise it is free to call, and what it wrote is handed on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightwork.decode.constraints import SPACE, Constraint
from lightwork.errors import UsageError
from lightwork.serve.calls import BEGIN, END

_ANY = r"TEXT: /(.|\n)*/"
AS_TEMPLATES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Arguments are spaced as `tojson` does: as the calls were that models were trained on."""
FREELY = {"whitespace_pattern": SPACE}
"""Of an answer, as where there are no tools."""


class Signature(NamedTuple):
    """What may be called. parameters: a JSON schema of an object; None: it takes none."""

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


def check_template(template: str | None) -> None:
    """Raises UsageError for a chat template that offers no tools, or writes calls in a form not read here."""
    if template is None or ("tools" in template and BEGIN in template):
        return
    why = "offers no tools" if "tools" not in template else "writes calls in a form that is not read here"
    raise UsageError(
        f"tools cannot be used: the chat template of this model {why}",
        expected=f"a template that uses tools and writes calls as {BEGIN}{{JSON}}{END}",
        fix="another model, or no tools",
    )


def free_or_strict(functions: Sequence[Signature], *, many: bool = True) -> Constraint | None:
    """Text in which calls may stand; None where nothing is to be enforced. many: more than one call."""
    if many and not any(function.strict for function in functions):
        return None
    return _lark(_text_or_calls(functions, many=many))


def demanded(
    functions: Sequence[Signature], *, many: bool, instead: Mapping[str, Any] | None = None
) -> Constraint:
    """One call or more and nothing else, or JSON of a schema instead. Raises UsageError."""
    calls = 'call ("\\n" call)*' if many else "call"
    if instead is None:
        return _lark([f"start: {calls}", *_rules(functions, BEGIN)])
    answer = f"answer: %json {_written(instead, FREELY)}"
    return _lark([f"start: answer | {calls}", answer, *_rules(functions, BEGIN)])


def _lark(rules: Sequence[str]) -> Constraint:
    return Constraint(kind="lark", text="\n".join(rules))


def _text_or_calls(functions: Sequence[Signature], *, many: bool) -> list[str]:
    """Where a call begins, text ends at once: that is what lazy means."""
    whole = "(begin call)* TEXT" if many else "TEXT | begin call"
    begin = f"begin[lazy]: TEXT {json.dumps(BEGIN)}"
    return [f"start: {whole}", begin, _ANY, *_rules(functions, "", loosely=True)]


def _rules(functions: Sequence[Signature], begin: str, *, loosely: bool = False) -> list[str]:
    """The rule `call` and what it needs. loosely: only strict functions' arguments follow their schemas."""
    rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(functions)))]
    for i, function in enumerate(functions):
        head = json.dumps(f'{begin}\n{{"name": {json.dumps(function.name)}, "arguments": ')
        tail = json.dumps(f"}}\n{END}")
        schema = {"type": "object"} if loosely and not function.strict else _schema(function)
        rules.append(f"call_{i}: {head} arguments_{i} {tail}")
        rules.append(f"arguments_{i}: %json {_written(schema, AS_TEMPLATES)}")
    return rules


def _schema(function: Signature) -> dict[str, Any]:
    """Of its arguments, which are an object; a function without any takes none."""
    if function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if function.parameters.get("type", "object") != "object":
        raise UsageError(
            f"tools hold {function.name!r}, whose parameters are no object", expected="an object"
        )
    return {"type": "object", **function.parameters}


def _written(schema: Mapping[str, Any], how: Mapping[str, Any]) -> str:
    """A schema with how its JSON is spaced. A keyword that is not understood is refused, not left out."""
    try:
        return json.dumps({**schema, "x-guidance": {**how, "lenient": False}})
    except RecursionError:
        raise UsageError("tools nest too deeply", expected="a few levels") from None
