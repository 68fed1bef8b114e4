"""Anthropic's /v1/messages as a chat."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.http.adapters.messages_reply import MessageReply
from lightwork.serve.http.adapters.running import Thoughts, answer, chat_body
from lightwork.serve.http.adapters.thinking import VARIABLE, ThoughtParser, can_think, opened
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
}
"""Fields that this API defines and that are not done here, with the values that ask for nothing."""

UNSUPPORTED_THINKING: dict[str, tuple[Any, ...]] = {"display": ("summarized",)}


class Block(Lenient):
    """A part of a message: text, a tool's use, or its result."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: str = ""
    thinking: str = ""
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


class Thinking(Lenient):
    """budget_tokens: nothing holds a model to it, so it is named among what is ignored."""

    unsupported = UNSUPPORTED_THINKING

    type: Literal["enabled", "disabled", "adaptive"]


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
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def chat(self, tokenizer: Tokenizer) -> ChatBody:
        """As a chat. Raises HttpError for what chat, or the model's template, cannot do."""
        fields = self._fields()
        if self.thinking is not None and can_think(tokenizer):
            fields["chat_template_kwargs"] = {VARIABLE: self.thinks, **(self.chat_template_kwargs or {})}
        elif self.thinks:
            raise refused(
                "thinking",
                f"cannot be had: the chat template of this model has no {VARIABLE}",
                expected='{"type": "disabled"}',
            )
        return chat_body(**fields)

    @property
    def thinks(self) -> bool:
        return self.thinking is not None and self.thinking.type != "disabled"

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
            "chat_template_kwargs": self.chat_template_kwargs,
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

    def _fields(self) -> dict[str, Any]:
        same = ("max_tokens", "stream", "temperature", "top_k", "top_p", "seed", "min_p")
        return {
            **super()._fields(),
            **{name: getattr(self, name) for name in same},
            "stop": self.stop_sequences,
            "user": self.metadata.user_id if self.metadata else None,
        }


class Messages:
    """The handlers."""

    def __init__(self, handling: Handling) -> None:
        self.handling = handling

    async def create(self, body: MessagesBody, request: Request) -> Response:
        headers = self.handling.begin(body, body.model)
        tokenizer = self.handling.served.tokenizer
        chat = body.chat(tokenizer)
        made = await self.handling.translate(request, chat_request, chat, self.handling.served)
        reply, thoughts = MessageReply(body.model, len(made.prompt)), None
        if body.thinks:
            if made.constraint is not None:
                raise refused(
                    "thinking", "is not done where a reply is held to a form", expected="one of them"
                )
            thoughts = Thoughts(ThoughtParser(opened=opened(made.prompt, tokenizer)), reply.think)
        return await answer(self.handling, request, chat, made, reply, headers, thoughts)

    async def count_tokens(self, body: CountBody, request: Request) -> Response:
        headers = self.handling.begin(body, body.model)
        chat = body.chat(self.handling.served.tokenizer)
        made = await self.handling.translate(request, chat_request, chat, self.handling.served)
        return JSONResponse({"input_tokens": len(made.prompt)}, headers=headers)


def _messages(turn: Turn) -> list[dict[str, Any]]:
    """A turn as chat's messages: results of tools first, each its own. Thoughts are for templates that read
    `reasoning_content`."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    results, calls, texts, thoughts = [], [], [], []
    for block in turn.content:
        if block.type == "tool_result" and turn.role == "user":
            told = block.content if isinstance(block.content, str) else _text(block.content, "messages")
            result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": told}
            results.append({**result, "is_error": True} if block.is_error else result)
        elif block.type == "tool_use" and turn.role == "assistant":
            function = {"name": block.name, "arguments": json.dumps(block.input)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif block.type == "thinking" and turn.role == "assistant":
            thoughts.append(block.thinking)
        else:
            texts.append(block)
    message: dict[str, Any] = {"role": turn.role, "content": _text(texts, "messages")}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return [*results, message] if texts or calls or not results else results


def _text(blocks: list[Block], field: str) -> str:
    wrong = next((block.type for block in blocks if block.type != "text"), None)
    if wrong is not None:
        raise refused(
            field,
            f"hold a block of type {wrong[:40]!r} there",
            expected="text, tool_use, tool_result or thinking",
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
