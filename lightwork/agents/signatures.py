"""A function's arguments and result as its type hints declare them: their JSON schema, and what fits it.

pydantic reads and checks; a value is converted where that loses nothing ("3" for an int), as plans are text.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from lightwork._listing import nearest
from lightwork.errors import SpecError, UsageError

SHOWN = 80
_SECTION = re.compile(r"\s*(Args|Arguments|Parameters|Params|Returns|Raises|Yields|Examples?):?\s*$")
_EMPTY = inspect.Parameter.empty


class _Schema(GenerateJsonSchema):
    """Defaults that JSON does not know are left out, silently."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - of the library


class Signature:
    """description: what the docstring says before its parameters. schema: of the arguments, an object.

    Raises SpecError for a function that cannot be called by name, or whose hints are no types.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.name = getattr(fn, "__name__", "tool")
        try:
            self._signature = inspect.signature(fn, eval_str=True)
            hints = get_type_hints(fn, include_extras=True)
        except (NameError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"the type hints of {self.name} cannot be read: {error}") from error
        parameters = self._signature.parameters
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise SpecError(
                    f"{self.name} takes {parameter}, and a model calls by name",
                    expected="parameters that each have a name",
                    fix=f"{name}: list[str]" if parameter.kind == parameter.VAR_POSITIONAL else "name them",
                )
        doc = inspect.getdoc(fn) or ""
        self.description, told = split_doc(doc, parameters)
        self._fields = {f"p{i}": name for i, name in enumerate(parameters)}
        fields = {
            field: (hints.get(name, Any), _field(parameters[name], told.get(name, "")))
            for field, name in self._fields.items()
        }
        self._arguments = self._model(fields)
        self._result = self._model({"value": (hints["return"], ...)}) if "return" in hints else None
        try:
            schema = self._arguments.model_json_schema(schema_generator=_Schema)
        except PydanticUserError as error:
            raise SpecError(f"{self.name} takes what JSON cannot say: {error}") from error
        self.schema: dict[str, Any] = {"type": "object", "properties": {}, **_untitled(schema)}

    def bind(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments as the function takes them. Raises UsageError, naming each that does not fit."""
        try:
            read = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            wrong = "; ".join(self._told(one) for one in error.errors(include_url=False))
            raise UsageError(f"{self.name}: {wrong}", expected=f"{self.name}{self._signature}") from error
        values = {name: getattr(read, field) for field, name in self._fields.items()}
        first = [n for n, p in self._signature.parameters.items() if p.kind == p.POSITIONAL_ONLY]
        return [values.pop(name) for name in first], values

    def check(self, value: Any) -> Any:
        """The result as it is declared. Raises UsageError for one that is something else."""
        if self._result is None:
            return value
        try:
            return self._result.model_validate({"value": value}).value  # type: ignore[attr-defined]
        except ValidationError as error:
            one = error.errors(include_url=False)[0]
            where = "".join(f"[{part!r}]" for part in one["loc"][1:])
            raise UsageError(
                f"{self.name} returned what it does not declare: result{where}: {one['msg']}, "
                f"it is {_short(one['input'])}",
                expected=inspect.formatannotation(self._signature.return_annotation),
            ) from error

    def _model(self, fields: Mapping[str, Any]) -> type[BaseModel]:
        how = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
        try:
            made: type[BaseModel] = create_model(self.name, __config__=how, **fields)
        except (PydanticUserError, TypeError, NameError) as error:
            raise SpecError(f"the type hints of {self.name} are no types: {error}") from error
        return made

    def _told(self, error: Any) -> str:
        """What is wrong with one argument."""
        where = ".".join(str(part) for part in error["loc"])
        if error["type"] == "missing":
            return f"{where} is missing"
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            near = nearest(where, self._signature.parameters)
            return f"there is no argument {where!r}" + (f", only {near}" if near else "")
        return f"{where}: {error['msg']}, it is {_short(error['input'])}"


def split_doc(doc: str, names: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """A docstring's description, and what it says of each parameter: `name: text` on a line of its own, in
    any of the usual styles, further lines being indented."""
    description: list[str] = []
    told: dict[str, str] = {}
    current, indent, before = "", 0, True
    for line in doc.splitlines():
        depth = len(line) - len(line.lstrip())
        match = re.match(r"\s*(?::param\s+)?(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)", line)
        if match and match[1] in names:
            current, indent, before = match[1], depth, False
            told[current] = match[2].strip()
        elif current and line.strip() and depth > indent:
            told[current] = f"{told[current]} {line.strip()}".strip()
        elif _SECTION.match(line) or line.strip().startswith(":"):
            current, before = "", False
        else:
            current = ""
            if before:
                description.append(line)
    return "\n".join(description).strip(), told


def _field(parameter: inspect.Parameter, told: str) -> Any:
    default = ... if parameter.default is _EMPTY else parameter.default
    return Field(default, alias=parameter.name, description=told or None)


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic makes of names."""
    if isinstance(schema, list):
        return [_untitled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain = ("default", "enum", "const", "examples")
    return {
        name: part if name in plain else _untitled(part)
        for name, part in schema.items()
        if name != "title" or not isinstance(part, str)
    }


def _short(value: Any) -> str:
    if isinstance(value, str):
        value = value[: SHOWN + 1]
    elif not isinstance(value, int | float | bool | None):
        return f"of type {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
