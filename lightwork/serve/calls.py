"""Tool calls in a reply's text, while it arrives: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`,
as Hermes and Qwen models were trained to write them.

White space around calls belongs to their form and is not shown. Arguments are handed on as the model wrote
them, as soon as they come. What only looked like a call is text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import NamedTuple

BEGIN, END = "<tool_call>", "</tool_call>"
_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')


class CallPiece(NamedTuple):
    """What is new of one call. number: in its reply. id and name come with its first piece only."""

    number: int
    arguments: str
    id: str = ""
    name: str = ""


Piece = str | CallPiece


def any_id(number: int) -> str:
    """One that no other call of any conversation has."""
    return f"call_{secrets.token_hex(12)}"


class CallParser:
    """Tells the text and the calls of one reply apart.

    num_calls: begun so far. reads_calls: False where no tools were offered: all is text. new_id: of the call
    of this number.
    """

    def __init__(self, *, reads_calls: bool = True, new_id: Callable[[int], str] = any_id) -> None:
        self.num_calls = 0
        self._new_id = new_id
        self._reads_calls = reads_calls
        self._held = ""
        self._after_call = False
        self._depth = 0
        self._quoted = self._escaped = False
        self._read: Callable[[], Iterator[Piece]] = self._text

    @property
    def num_held(self) -> int:
        """Characters that came and will be told as text, unless they turn out to belong to a call."""
        return len(self._held) if self._read == self._text else 0

    def push(self, text: str) -> list[Piece]:
        """What is certain with this much more of the reply."""
        if not self._reads_calls:
            return [text] if text else []
        self._held += text
        pieces: list[Piece] = []
        before = None
        while before != (self._read, self._held):
            before = self._read, self._held
            pieces += self._read()
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, when no more text comes. A call that was cut short stays so."""
        rest, self._held = self._held, ""
        if self._read == self._head:
            return [*self._complete(rest, BEGIN + rest)]
        if self._read == self._end:
            rest = _behind(rest)
        elif self._after_call:
            rest = rest.strip()
        return [rest] if rest else []

    def reason(self, reason: str) -> str:
        """Why the reply ended, in OpenAI's words."""
        return "tool_calls" if self.num_calls and reason == "stop" else reason

    # -- states: each takes what it understands off the held text

    def _text(self) -> Iterator[Piece]:
        if self._after_call:
            self._held = self._held.lstrip()
        text, begin, rest = self._held.partition(BEGIN)
        if begin:
            self._held, self._read = rest, self._head
        else:
            text = text[: len(text) - _begun(text)]
        text = text.rstrip()
        if not begin:
            self._held = self._held[len(text) :]
        if text:
            self._after_call = False
            yield text

    def _head(self) -> Iterator[Piece]:
        body, end, rest = self._held.partition(END)
        match = _HEAD.match(body)
        name = _loads(match[1]) if match else None
        if match and isinstance(name, str):
            self._held, self._read = self._held[match.end() :], self._arguments
            yield self._begin(name, "")
        elif end:
            self._held, self._read = rest, self._text
            yield from self._complete(body, BEGIN + body + END)

    def _arguments(self) -> Iterator[Piece]:
        """Up to the brace that closes them, or to what cannot be JSON any more."""
        length = len(self._held)
        for i, char in enumerate(self._held):
            if not self._quoted and char == "<":
                length, self._read = i, self._end
                break
            self._count(char)
            if not self._depth:
                length, self._read = i + 1, self._end
                break
        told, self._held = self._held[:length], self._held[length:]
        if self._read == self._end:
            self._depth = 0
        if told:
            yield CallPiece(self.num_calls - 1, told)

    def _count(self, char: str) -> None:
        if self._quoted:
            ends = char == '"' and not self._escaped
            self._escaped = char == "\\" and not self._escaped
            self._quoted = not ends
        elif char == '"':
            self._quoted = True
        else:
            self._depth += (char in "{[") - (char in "}]")

    def _end(self) -> Iterator[Piece]:
        body, end, rest = self._held.partition(END)
        if not end:
            return
        self._held, self._read, self._after_call = rest, self._text, True
        if said := _behind(body):
            yield said

    # -- calls

    def _begin(self, name: str, arguments: str) -> CallPiece:
        self.num_calls += 1
        number = self.num_calls - 1
        return CallPiece(number, arguments, self._new_id(number), name)

    def _complete(self, body: str, otherwise: str) -> Iterator[Piece]:
        """A call in another order of its parts; what is none is shown as it was written."""
        said = _loads(body)
        if not isinstance(said, dict) or not isinstance(said.get("name"), str):
            self._after_call = False
            yield otherwise
            return
        self._after_call = True
        given = said.get("arguments", said.get("parameters", {}))
        yield self._begin(
            said["name"], given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        )


def _begun(text: str) -> int:
    """Length of the longest end of a text that may be the beginning of a call."""
    return next((n for n in range(min(len(text), len(BEGIN) - 1), 0, -1) if BEGIN.startswith(text[-n:])), 0)


def _behind(text: str) -> str:
    """What stands behind arguments that does not belong to a call's form."""
    rest = text.strip().removeprefix("}").strip()
    return "" if END.startswith(rest) else rest


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
