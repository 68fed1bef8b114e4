"""A message of Anthropic's API, as it grows."""

from __future__ import annotations

import json
import secrets
from typing import Any

from lightwork.serve.calls import CallPiece, Piece
from lightwork.serve.http.adapters import Event
from lightwork.serve.service import Delta

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageReply:
    """model: its name as it was asked for. num_prompt: tokens of the prompt."""

    def __init__(self, model: str, num_prompt: int) -> None:
        self._content: list[dict[str, Any]] = []
        self._arguments = ""
        self._open = False
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": num_prompt, "output_tokens": 0},
        }

    def begin(self) -> list[Event]:
        return [{"type": "message_start", "message": {**self._message, "content": []}}]

    def add(self, piece: Piece) -> list[Event]:
        if isinstance(piece, CallPiece):
            return self._add_call(piece)
        events = []
        if not self._open or self._content[-1]["type"] != "text":
            events = self._start({"type": "text", "text": ""})
        self._content[-1]["text"] += piece
        return [*events, self._delta({"type": "text_delta", "text": piece})]

    def think(self, text: str) -> list[Event]:
        """Events of a piece of what is thought before the answer."""
        events = []
        if not self._open or self._content[-1]["type"] != "thinking":
            events = self._start({"type": "thinking", "thinking": "", "signature": ""})
        self._content[-1]["thinking"] += text
        return [*events, self._delta({"type": "thinking_delta", "thinking": text})]

    def end(self, last: Delta, reason: str) -> list[Event]:
        events = self._stop()
        usage, told = last.usage, _REASONS.get(reason, "end_turn")
        if told == "tool_use" and all(block["type"] != "tool_use" for block in self._content):
            told = "end_turn"
        ended = {"stop_reason": "stop_sequence" if last.stop else told, "stop_sequence": last.stop or None}
        if usage is not None:
            self._message["usage"] = {
                "input_tokens": usage.prompt_tokens - usage.cached_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": usage.cached_tokens,
                "output_tokens": usage.output_tokens,
            }
        self._message |= ended
        changed = {"type": "message_delta", "delta": ended, "usage": self._message["usage"]}
        return [*events, changed, {"type": "message_stop"}]

    def failed(self, error: dict[str, Any]) -> list[Event]:
        return [{"type": "error", "error": error}]

    def whole(self) -> dict[str, Any]:
        return self._message

    # -- blocks

    def _add_call(self, piece: CallPiece) -> list[Event]:
        events = []
        if piece.id:
            events = self._start({"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})
            self._arguments = ""
        self._arguments += piece.arguments
        if piece.arguments:
            events.append(self._delta({"type": "input_json_delta", "partial_json": piece.arguments}))
        return events

    def _start(self, block: dict[str, Any]) -> list[Event]:
        events = self._stop()
        self._content.append(block)
        self._open = True
        return [
            *events,
            {"type": "content_block_start", "index": len(self._content) - 1, "content_block": {**block}},
        ]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta}

    def _stop(self) -> list[Event]:
        """End the open block. A call whose arguments are no object cannot be made: it is shown as text."""
        if not self._open:
            return []
        self._open = False
        if self._content[-1]["type"] == "tool_use":
            try:
                given = json.loads(self._arguments)
            except (ValueError, RecursionError):
                given = None
            if isinstance(given, dict):
                self._content[-1]["input"] = given
            else:
                self._content[-1] = {"type": "text", "text": self._arguments}
        return [{"type": "content_block_stop", "index": len(self._content) - 1}]
