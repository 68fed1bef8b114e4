"""A conversation read back from its text, as tiny:llama's template writes it: what a teacher answers."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import Any, cast

from lightwork.agents.chat_model import ChatRequest, Message, Role, ToolCall
from lightwork.agents.replies import read_call
from lightwork.serve.calls import CallParser

BEGIN, END = "<|assistant|>", "<|end|>"
_TURN = re.compile(r"<\|(system|user|assistant|tool)\|>(.*?)<\|end\|>", re.DOTALL)


def read_conversation(text: str) -> tuple[ChatRequest | None, str]:
    """What is asked, and what its reply says so far; None where no reply is begun, or it has ended."""
    before, begin, said = text.rpartition(BEGIN)
    if not begin or END in said:
        return None, ""
    turns: list[tuple[str, str]] = _TURN.findall(before)
    tools = _tools(turns[0]) if turns else ()
    messages: list[Message] = []
    asked: deque[str] = deque()
    for role, content in turns[1:] if tools else turns:
        if role == "assistant" and tools:
            first = sum(len(message.calls) for message in messages)
            content, calls = _calls(content, first)
            asked.extend(call.id for call in calls)
            messages.append(Message("assistant", content, calls))
        elif role == "tool":
            messages.append(Message("tool", content, call_id=asked.popleft() if asked else ""))
        else:
            messages.append(Message(cast(Role, role), content))
    return ChatRequest(tuple(messages), tools), said


def _tools(turn: tuple[str, str]) -> tuple[dict[str, Any], ...]:
    """The tools that a first turn lists, one a line."""
    role, content = turn
    found = []
    for line in content.splitlines() if role == "system" else ():
        try:
            tool = json.loads(line)
        except ValueError:
            continue
        if isinstance(tool, dict) and "name" in tool:
            found.append(tool)
    return tuple(found)


def _calls(content: str, first: int) -> tuple[str, tuple[ToolCall, ...]]:
    """A turn's text and the calls in it, whose ids count on from `first`."""
    parser = CallParser(new_id=lambda number: f"call_{first + number + 1}")
    said, calls = "", list[list[str]]()
    for piece in (*parser.push(content), *parser.finish()):
        if isinstance(piece, str):
            said += piece
        elif piece.id:
            calls.append([piece.id, piece.name, piece.arguments])
        else:
            calls[piece.number][2] += piece.arguments
    return said, tuple(read_call(*call) for call in calls)
