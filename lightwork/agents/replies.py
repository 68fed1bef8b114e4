"""From a model's text to its reply: calls taken apart, with ids that are the same in every run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightwork.agents.chat_model import ChatRequest, ChatStream, Message, Reason, Reply, ToolCall, Usage
from lightwork.decode.sampling import Pick
from lightwork.serve.calls import CallParser, Piece


def read_call(call_id: str, name: str, arguments: str) -> ToolCall:
    """A call whose arguments a model wrote as text."""
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        read = None
    if isinstance(read, dict):
        return ToolCall(call_id, name, read)
    return ToolCall(call_id, name, {}, raw=arguments)


def message_dict(message: Message) -> dict[str, Any]:
    """As chat templates expect it; as OpenAI's API does, but for arguments, which are text there."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.calls
        ]
    if message.call_id:
        told["tool_call_id"] = message.call_id
    return told


def function_dicts(request: ChatRequest) -> list[dict[str, Any]]:
    """The request's tools, as templates and OpenAI's API expect them."""
    return [{"type": "function", "function": dict(tool)} for tool in request.tools]


def next_id(request: ChatRequest, number: int) -> str:
    """Of the call of this number in the reply: they count on from the conversation's, call_1, call_2, ..."""
    return f"call_{sum(len(message.calls) for message in request.messages) + number + 1}"


@dataclass(slots=True)
class ReplyWriter:
    """Writes a model's text to a stream as it comes, without the calls in it, and ends it."""

    request: ChatRequest
    stream: ChatStream
    _parser: CallParser = field(init=False)
    _text: list[str] = field(default_factory=list, init=False)
    _calls: list[tuple[str, str, list[str]]] = field(default_factory=list, init=False)
    _known: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        new_id = partial(next_id, self.request)
        self._parser = CallParser(reads_calls=bool(self.request.tools), new_id=new_id)
        if self.request.prefix:
            self._take(self._parser.push(self.request.prefix), shown=False)
            self._known = self._parser.num_held

    def push(self, text: str) -> None:
        self._take(self._parser.push(text))

    def end(self, reason: Reason, usage: Usage, picks: tuple[Pick, ...] = ()) -> None:
        """Nothing more comes."""
        self._take(self._parser.finish())
        calls = tuple(read_call(id, name, "".join(parts)) for id, name, parts in self._calls)
        if calls and reason == "stop":
            reason = "tool_calls"
        self.stream.end(Reply("".join(self._text), calls, reason, usage, picks))

    def _take(self, pieces: list[Piece], *, shown: bool = True) -> None:
        for piece in pieces:
            known, self._known = self._known, 0  # of the prefix, and held until now
            if not isinstance(piece, str):
                if piece.id:
                    self._calls.append((piece.id, piece.name, []))
                self._calls[piece.number][2].append(piece.arguments)
            elif shown and len(piece) > known:
                self._text.append(piece[known:])
                self.stream.push(piece[known:])
