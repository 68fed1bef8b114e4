"""A response of OpenAI's API, as it grows."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from lightwork.serve.calls import CallPiece, Piece
from lightwork.serve.http.adapters import Event
from lightwork.serve.service import Delta, Usage


class ResponseReply:
    """asked: what it repeats of its request. created: Unix time. keep: is given it when it has ended.

    Its output is a list of items, messages and calls; at most the last one is still open.
    """

    def __init__(
        self, asked: dict[str, Any], created: int, keep: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self._keep = keep
        self._items: list[dict[str, Any]] = []
        self._open = False
        self._sequence = 0
        self._response: dict[str, Any] = {
            **asked,
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": self._items,
            "usage": None,
        }

    def begin(self) -> list[Event]:
        return [self._whole_event("response.created"), self._whole_event("response.in_progress")]

    def add(self, piece: Piece) -> list[Event]:
        if isinstance(piece, CallPiece):
            return self._add_call(piece)
        events = []
        if not self._open or self._items[-1]["type"] != "message":
            events = self._start_message()
        self._items[-1]["content"][0]["text"] += piece
        delta = {"content_index": 0, "delta": piece, "logprobs": []}
        return [*events, self._event("response.output_text.delta", **self._where(), **delta)]

    def end(self, last: Delta, reason: str) -> list[Event]:
        cut = reason == "length"
        status = "incomplete" if cut else "completed"
        events = self._stop(status)
        self._response["status"] = status
        self._response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        self._response["usage"] = None if last.usage is None else _usage(last.usage)
        if self._keep is not None:
            self._keep(self._response)
        return [*events, self._whole_event(f"response.{status}")]

    def failed(self, error: dict[str, Any]) -> list[Event]:
        told = {name: error[name] for name in ("code", "message", "param")}
        return [self._event("error", **told, error=error)]

    def whole(self) -> dict[str, Any]:
        return self._response

    # -- items

    def _add_call(self, piece: CallPiece) -> list[Event]:
        events = []
        if piece.id:
            item = {"type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "call_id": piece.id}
            events = self._start({**item, "name": piece.name, "arguments": "", "status": "in_progress"})
        self._items[-1]["arguments"] += piece.arguments
        if piece.arguments:
            kind = "response.function_call_arguments.delta"
            events.append(self._event(kind, **self._where(), delta=piece.arguments))
        return events

    def _start_message(self) -> list[Event]:
        item = {"type": "message", "id": f"msg_{secrets.token_hex(12)}", "role": "assistant"}
        events = self._start({**item, "status": "in_progress", "content": []})
        part = {"type": "output_text", "text": "", "annotations": []}
        self._items[-1]["content"].append(part)
        added = {"content_index": 0, "part": {**part}}
        return [*events, self._event("response.content_part.added", **self._where(), **added)]

    def _start(self, item: dict[str, Any]) -> list[Event]:
        events = self._stop("completed")
        self._items.append(item)
        self._open = True
        at = len(self._items) - 1
        return [*events, self._event("response.output_item.added", output_index=at, item=_copy(item))]

    def _stop(self, status: str) -> list[Event]:
        """End the open item."""
        if not self._open:
            return []
        self._open = False
        item, where = self._items[-1], self._where()
        item["status"] = status
        events = []
        if item["type"] == "message":
            [part] = item["content"]
            text = {"content_index": 0, "text": part["text"], "logprobs": []}
            events.append(self._event("response.output_text.done", **where, **text))
            done = {"content_index": 0, "part": {**part}}
            events.append(self._event("response.content_part.done", **where, **done))
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **where, **told))
        at = where["output_index"]
        return [*events, self._event("response.output_item.done", output_index=at, item=_copy(item))]

    # -- events

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _whole_event(self, kind: str) -> Event:
        output = [_copy(item) for item in self._items]
        return self._event(kind, response={**self._response, "output": output})

    def _event(self, kind: str, **fields: Any) -> Event:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """An event shows an item as it is now, though it goes on growing."""
    return {**item, "content": [{**part} for part in item["content"]]} if "content" in item else {**item}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }
