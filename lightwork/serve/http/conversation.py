"""A conversation as chat templates expect it, and its tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import local_date
from lightwork.serve.http.errors import refused
from lightwork.serve.http.schemas import Message, SaidCall

_UNREAD = ("audio", "function_call")
"""Of messages: OpenAI defines them, and no template here reads them."""


def chat_ids(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    variables: Mapping[str, Any],
    *,
    add_special: bool = False,
    begun: str = "",
) -> list[int]:
    """Token ids of a conversation as the model's template writes it, given these variables beside. begun: how
    the reply begins."""
    knows_developers = "developer" in (tokenizer.chat_template or "")
    written = [message_dict(m, knows_developers=knows_developers) for m in messages]
    try:
        text = tokenizer.chat_text(written, now=local_date(), **variables)
    except RecursionError:
        raise refused("messages", "or tools nest too deeply", expected="a few levels") from None
    return encode(text + begun, tokenizer, "messages", add_special=add_special)


def encode(text: str, tokenizer: Tokenizer, field: str, *, add_special: bool) -> list[int]:
    """Token ids of a text that a field held."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refused(
            field, "hold half a surrogate pair", expected="text", fix="send whole characters"
        ) from None
    return tokenizer.encode(text, add_special=add_special)


def message_dict(message: Message, *, knows_developers: bool = True) -> dict[str, Any]:
    """A message as templates expect it: parts of text joined into one string, arguments of calls as objects.

    knows_developers: whether the template has a place for what developers say; else it is the system's.
    """
    content = message.content
    if isinstance(content, list):
        wrong = next((part.type for part in content if part.type != "text"), None)
        if wrong is not None:
            raise refused("messages", f"hold a part of type {wrong[:40]!r}", expected="text")
        content = "".join(part.text or "" for part in content)
    more = dict(message.model_extra or {})
    for name in _UNREAD:
        if more.get(name) is not None:
            raise refused("messages", f"hold {name}, which is not supported", expected="content, tool_calls")
    role = message.role
    if role == "developer" and not knows_developers:
        role = "system"
    if message.tool_calls:
        more["tool_calls"] = [_call_dict(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        more["tool_call_id"] = message.tool_call_id
    return {**more, "role": role, "content": content or ""}


def _call_dict(call: SaidCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise refused(
            "messages",
            f"hold a call of {call.function.name[:80]!r} whose arguments are no object",
            expected="a JSON object, written as a string",
            fix="send the call with valid arguments",
        )
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }
