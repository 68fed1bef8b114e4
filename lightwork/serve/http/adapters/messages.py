"""Anthropic's /v1/messages as a chat."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from lightwork.serve.http.adapters.messages_reply import MessageReply
from lightwork.serve.http.adapters.running import answer, chat_body
from lightwork.serve.http.errors import refused
from lightwork.serve.http.handling import Handling
from lightwork.serve.http.schemas import ChatBody, Count, Lenient
from lightwork.serve.http.translate import chat_request

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "thinking": ({"type": "disabled"},),
}
"""Fields that this API defines and that are not done here, with the values that ask for nothing."""


class Block(Lenient):
    """A part of a message: text, a tool's use, or its result."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: str = ""
    content: str | list[Block] = ""
    is_error: bool = False


class Turn(Lenient):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class OfferedTool(Lenient):
    type: Literal["custom"] = "custom"
    name: str
    description: str | None = None
    input_schema: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None


class Choice(Lenient):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Metadata(Lenient):
    user_id: str = ""


class Format(Lenient):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Lenient):
    effort: str | None = None
    format: Format | None = None


class CountBody(Lenient):
    """What a request's prompt is made of."""

    unsupported = UNSUPPORTED
    hints = frozenset({"cache_control", "user_profile_id", "workspace_id"})

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[Block] = ""
    tools: list[OfferedTool] | None = None
    tool_choice: Choice | None = None
    output_config: OutputConfig | None = None

    def chat(self) -> ChatBody:
        """As a chat. Raises HttpError for what chat cannot do."""
        return chat_body(**self._fields())

    def _fields(self) -> dict[str, Any]:
        if self.messages[-1].role == "assistant":
            raise refused(
                "messages",
                "end with the assistant's, which would have to be continued",
                expected="the user's last",
                fix="ask for the rest in words",
            )
        system = self.system if isinstance(self.system, str) else _text(self.system, "system")
        messages = [{"role": "system", "content": system}] if system else []
        for turn in self.messages:
            messages += _messages(turn)
        choice, output = self.tool_choice, self.output_config or OutputConfig()
        return {
            "model": self.model,
            "messages": messages,
            "tools": [_tool(tool) for tool in self.tools] if self.tools else None,
            "tool_choice": _choice(choice) if choice else None,
            "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
            "reasoning_effort": output.effort,
            "response_format": _format(output.format) if output.format else None,
        }


class MessagesBody(CountBody):
    """A request. seed, min_p and chat_template_kwargs are as in chat."""

    max_tokens: Count
    stop_sequences: list[str] | None = None
    stream: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: Metadata | None = None
    seed: int | None = None
    min_p: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def _fields(self) -> dict[str, Any]:
        same = ("max_tokens", "stream", "temperature", "top_k", "top_p", "seed", "min_p")
        return {
            **super()._fields(),
            **{name: getattr(self, name) for name in (*same, "chat_template_kwargs")},
            "stop": self.stop_sequences,
            "user": self.metadata.user_id if self.metadata else None,
        }


class Messages:
    """The handlers."""

    def __init__(self, handling: Handling) -> None:
        self.handling = handling

    async def create(self, body: MessagesBody, request: Request) -> Response:
        headers = self.handling.begin(body, body.model)
        chat = body.chat()
        made = await self.handling.translate(request, chat_request, chat, self.handling.served)
        reply = MessageReply(body.model, len(made.prompt))
        return await answer(self.handling, request, chat, made, reply, headers)

    async def count_tokens(self, body: CountBody, request: Request) -> Response:
        headers = self.handling.begin(body, body.model)
        made = await self.handling.translate(request, chat_request, body.chat(), self.handling.served)
        return JSONResponse({"input_tokens": len(made.prompt)}, headers=headers)


def _messages(turn: Turn) -> list[dict[str, Any]]:
    """A turn as chat's messages: results of tools first, each its own."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    results, calls, texts = [], [], []
    for block in turn.content:
        if block.type == "tool_result" and turn.role == "user":
            told = block.content if isinstance(block.content, str) else _text(block.content, "messages")
            result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": told}
            results.append({**result, "is_error": True} if block.is_error else result)
        elif block.type == "tool_use" and turn.role == "assistant":
            function = {"name": block.name, "arguments": json.dumps(block.input)}
            calls.append({"id": block.id, "type": "function", "function": function})
        else:
            texts.append(block)
    message: dict[str, Any] = {"role": turn.role, "content": _text(texts, "messages")}
    if calls:
        message["tool_calls"] = calls
    return [*results, message] if texts or calls or not results else results


def _text(blocks: list[Block], field: str) -> str:
    wrong = next((block.type for block in blocks if block.type != "text"), None)
    if wrong is not None:
        raise refused(
            field, f"hold a block of type {wrong[:40]!r} there", expected="text, tool_use or tool_result"
        )
    return "".join(block.text for block in blocks)


def _format(form: Format) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": form.schema_}}


def _tool(tool: OfferedTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    known = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": {**known, "parameters": tool.input_schema}}


def _choice(choice: Choice) -> object:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    return {"any": "required"}.get(choice.type, choice.type)
