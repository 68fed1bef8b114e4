"""What tests of models share: one way to ask, and policies whose replies are known."""

from __future__ import annotations

from typing import Any

from lightwork.agents.chat_model import ChatModel, ChatRequest, Message, Reply, ToolCall
from lightwork.agents.policies import Choice, call_text
from lightwork.runtime.kernel import Kernel

WEATHER = {
    "name": "weather",
    "description": "What the weather is.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def asked(text: str, **settings: Any) -> ChatRequest:
    return ChatRequest((Message("user", text),), **settings)


def answer(request: ChatRequest) -> str:
    """A fixed function of the conversation, of many tokens, with characters of several bytes."""
    last = request.messages[-1].content
    return f"You said {last!r}, which is {len(last)} characters – naïve “quotes” and so on. " * 2


def echo(request: ChatRequest, said: str) -> str:
    return answer(request)


def uses_a_tool(request: ChatRequest, said: str) -> str:
    """Calls the weather tool once, then tells what it said."""
    last = request.messages[-1]
    if last.role == "tool":
        return f"It is {last.content}."
    return "Let me look.\n" + call_text(ToolCall("", "weather", {"city": last.content}))


def decides(request: ChatRequest, said: str) -> tuple[Choice, ...]:
    """Two decisions; some of the words begin alike."""
    if not said:
        return Choice("yes", 0.5), Choice("yesterday", 0.2), Choice("no", 0.3)
    if said == "yes":
        return Choice(" indeed", 0.25), Choice(" but", 0.75)
    return ()


ENDS = {"yes indeed": 0.125, "yes but": 0.375, "yesterday": 0.2, "no": 0.3}
"""What `decides` ends with, and how probable each is."""


def ask(kernel: Kernel, model: ChatModel, *requests: ChatRequest) -> list[Reply]:
    """The replies, all asked for at once."""

    async def main() -> list[Reply]:
        streams = [model.stream(request) for request in requests]
        return [await stream.reply() for stream in streams]

    replies: list[Reply] = kernel.run(main())
    return replies
