"""What a text has to be, and what of the vocabulary keeps it so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the whole output has to be.

    kind: any JSON object, JSON of a schema, a full match of a regular expression, one of several strings, or
    a sentence of a Lark grammar. text: the schema or the list of strings as JSON, the expression or the
    grammar as it is; "" for json_object.
    """

    kind: Kind
    text: str = ""
