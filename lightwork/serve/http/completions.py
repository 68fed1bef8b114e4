"""Chat and completions: the two routes of the OpenAI API that generate."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from lightwork.runtime.clock import unix_s
from lightwork.serve.http import replies
from lightwork.serve.http.choices import ChatChoices, CompletionChoices
from lightwork.serve.http.handling import Handling
from lightwork.serve.http.schemas import Body, ChatBody, CompletionBody
from lightwork.serve.http.translate import chat_request, completion_requests
from lightwork.serve.sequence import Request as EngineRequest
from lightwork.serve.service import Stream


class Completions:
    """The handlers."""

    def __init__(self, handling: Handling) -> None:
        self.handling = handling
        self.served = handling.served

    async def chat(self, body: ChatBody, request: Request) -> Response:
        headers = self.handling.begin(body, body.model)
        requests = [await self.handling.translate(request, chat_request, body, self.served)]
        shape = ChatChoices(body, self.served.tokenizer)
        streams = await self.handling.submit(requests, body)
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        frame = _frame("chatcmpl", kind, body.model)
        if body.stream:
            return _stream(streams, frame, shape.piece, body, headers, shape.opening())
        choices = await self.handling.until_left(request, replies.collect(streams), streams)
        if body.prompt_logprobs is not None:
            picks = choices[0].prompt_picks
            frame["prompt_logprobs"] = replies.prompt_logprobs(
                requests[0].prompt, picks, self.served.tokenizer
            )
        return _whole(frame, [shape.whole(c) for c in choices], choices, requests, headers)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        headers = self.handling.begin(body, body.model)
        requests = await self.handling.translate(request, completion_requests, body, self.served)
        shape = CompletionChoices(body, requests, self.served.tokenizer)
        streams = await self.handling.submit(requests, body)
        frame = _frame("cmpl", "text_completion", body.model)
        if body.stream:
            return _stream(streams, frame, shape.piece, body, headers)
        choices = await self.handling.until_left(request, replies.collect(streams), streams)
        return _whole(frame, [shape.whole(c) for c in choices], choices, requests, headers)


def event_stream(parts: AsyncIterator[bytes], headers: dict[str, str]) -> Response:
    """A reply of server-sent events."""
    return StreamingResponse(
        parts, media_type="text/event-stream", headers={"cache-control": "no-cache", **headers}
    )


def _frame(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": unix_s(), "model": model}


def _stream(
    streams: Sequence[Stream],
    frame: dict[str, Any],
    piece: replies.MakeChoice,
    body: Body,
    headers: dict[str, str],
    opening: Sequence[dict[str, Any]] = (),
) -> Response:
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    parts = replies.events(streams, frame, piece, with_usage=with_usage, opening=opening)
    return event_stream(parts, headers)


def _whole(
    frame: dict[str, Any],
    shown: list[dict[str, Any]],
    choices: Sequence[replies.Choice],
    requests: Sequence[EngineRequest],
    headers: dict[str, str],
) -> Response:
    usages = [c.usage for c in choices]
    body = {
        **frame,
        "choices": shown,
        "usage": replies.usage_object(usages, requests),
        "timings": replies.timings_object(usages, requests),
    }
    return JSONResponse(body, headers=headers)
