"""OpenAI's /v1/responses as a chat, which may go on from a response that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from lightwork.runtime.clock import unix_s
from lightwork.serve.http.adapters.responses_reply import ResponseReply
from lightwork.serve.http.adapters.running import answer, chat_body
from lightwork.serve.http.adapters.stored import Stored
from lightwork.serve.http.errors import refused
from lightwork.serve.http.handling import Handling
from lightwork.serve.http.schemas import IGNORED, ChatBody, Count, Lenient, StreamOptions
from lightwork.serve.http.translate import chat_request

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
"""Fields that this API defines and that are not done here, with the values that ask for nothing."""
UNSUPPORTED_REASONING: dict[str, tuple[Any, ...]] = {"summary": ("auto",), "generate_summary": ("auto",)}


class ContentPart(Lenient):
    type: str
    text: str = ""


class Item(Lenient):
    """Of the input: a message, a call that was made, or its output."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] = ""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[ContentPart] = ""


class OfferedFunction(Lenient):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class ChosenFunction(Lenient):
    type: Literal["function"]
    name: str


class TextConfig(Lenient):
    format: dict[str, Any] | None = None
    verbosity: Literal["medium"] = "medium"


class Reasoning(Lenient):
    unsupported = UNSUPPORTED_REASONING

    effort: str | None = None


class ResponsesBody(Lenient):
    """A request. seed, top_k, min_p and chat_template_kwargs are as in chat."""

    unsupported = UNSUPPORTED
    hints = IGNORED

    model: str
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    store: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    text: TextConfig | None = None
    tools: list[OfferedFunction] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction = "auto"
    top_p: float | None = None
    user: str | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def items(self) -> list[Item]:
        return [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def chat(self, before: Sequence[Item] = ()) -> ChatBody:
        """As a chat. before: the items that it goes on from. Raises HttpError for what chat cannot do."""
        same = ("model", "stream", "temperature", "top_p", "user", "seed", "top_k", "min_p")
        given = {name: getattr(self, name) for name in (*same, "chat_template_kwargs")}
        return chat_body(
            **given,
            messages=self._messages([*before, *self.items]),
            max_completion_tokens=self.max_output_tokens,
            parallel_tool_calls=self.parallel_tool_calls if not self.parallel_tool_calls else None,
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            response_format=_format(self.text),
            tools=[_tool(tool) for tool in self.tools] or None,
            tool_choice=_choice(self.tool_choice),
        )

    def _messages(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        for item in items:
            _append(messages, item)
        return messages


class Responses:
    """The handlers."""

    def __init__(self, handling: Handling) -> None:
        self.handling = handling
        self.stored = Stored()

    async def create(self, body: ResponsesBody, request: Request) -> Response:
        headers = self.handling.begin(body, body.model)
        last, before = body.previous_response_id, []
        if last is not None:
            kept = self.stored.get(last, param="previous_response_id")
            before = [Item.model_validate(item) for item in kept.items]
        chat = body.chat(before)
        made = await self.handling.translate(request, chat_request, chat, self.handling.served)

        def keep(response: dict[str, Any]) -> None:
            asked = [item.model_dump(exclude_unset=True) for item in (*before, *body.items)]
            self.stored.keep(response, [*asked, *response["output"]])

        reply = ResponseReply(_asked(body), unix_s(), keep if body.store else None)
        return await answer(self.handling, request, chat, made, reply, headers)

    async def get(self, response_id: str, request: Request) -> Response:
        for name in ("stream", "starting_after", "include"):
            if request.query_params.get(name, "false") != "false":
                raise refused(name, "is not supported here", expected="a response as it ended")
        return JSONResponse(self.stored.get(response_id).response)

    async def delete(self, response_id: str) -> Response:
        self.stored.forget(response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def _append(messages: list[dict[str, Any]], item: Item) -> None:
    """An item as a message, or as one more call of the assistant's message before it."""
    if item.type == "message" and item.role is not None:
        messages.append({"role": item.role, "content": _text(item.content)})
    elif item.type == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    elif item.type == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        raise refused(
            "input",
            f"holds an item of type {item.type[:40]!r}",
            expected="messages with a role, function_call, function_call_output",
            fix="leave that item out",
        )


def _text(content: str | list[ContentPart]) -> str:
    if isinstance(content, str):
        return content
    wrong = next((p.type for p in content if p.type not in ("input_text", "output_text", "text")), None)
    if wrong is not None:
        raise refused("input", f"holds a part of type {wrong[:40]!r}", expected="input_text or output_text")
    return "".join(part.text for part in content)


def _format(text: TextConfig | None) -> dict[str, Any] | None:
    """Of chat: there a schema stands one level deeper."""
    if text is None or text.format is None:
        return None
    kind = text.format.get("type")
    if kind != "json_schema":
        return text.format
    return {"type": kind, kind: {name: value for name, value in text.format.items() if name != "type"}}


def _tool(tool: OfferedFunction) -> dict[str, Any]:
    function = tool.model_dump(exclude={"type"}, exclude_none=True, exclude_unset=True)
    return {"type": "function", "function": function}


def _choice(choice: str | ChosenFunction) -> object:
    if isinstance(choice, str):
        return choice
    return {"type": "function", "function": {"name": choice.name}}


def _asked(body: ResponsesBody) -> dict[str, Any]:
    """What a response repeats of its request."""
    dumped = body.model_dump(mode="json")
    names = ("instructions", "max_output_tokens", "metadata", "model", "parallel_tool_calls", "temperature")
    shown = {name: dumped[name] for name in (*names, "tools", "tool_choice", "top_p")}
    text = dumped["text"] or {"format": {"type": "text"}}
    kept = {"store": body.store, "previous_response_id": body.previous_response_id}
    reasoning = {"effort": body.reasoning.effort if body.reasoning else None, "summary": None}
    told = {"text": text, "reasoning": reasoning, "truncation": "disabled", "user": body.user}
    return {**shown, **kept, **told}
