"""One chat on behalf of another API, from its body to the reply's last event."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from lightwork.serve.calls import CallParser
from lightwork.serve.http.adapters import Event, Reply
from lightwork.serve.http.completions import event_stream
from lightwork.serve.http.errors import error_body, invalid_value, log_failure
from lightwork.serve.http.handling import Handling
from lightwork.serve.http.replies import arriving
from lightwork.serve.http.schemas import ChatBody
from lightwork.serve.sequence import Request as EngineRequest
from lightwork.serve.service import Stream


def chat_body(**fields: Any) -> ChatBody:
    """A chat of these fields; None leaves one out. Raises HttpError for what chat does not accept."""
    try:
        return ChatBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise invalid_value(dict(error.errors()[0]), 0) from None


async def answer(
    handling: Handling,
    request: Request,
    body: ChatBody,
    engine_request: EngineRequest,
    reply: Reply,
    headers: dict[str, str],
) -> Response:
    """The reply to a chat, whole or streamed as the body says."""
    [stream] = await handling.submit([engine_request], body)
    growing = _growing(stream, CallParser(reads_calls=body.reads_calls), reply)
    if body.stream:
        return event_stream(_events(stream, growing, reply), headers)
    await handling.until_left(request, _exhaust(growing), [stream])
    return JSONResponse(reply.whole(), headers=headers)


async def _growing(stream: Stream, parser: CallParser, reply: Reply) -> AsyncGenerator[list[Event], None]:
    yield reply.begin()
    async with aclosing(arriving([stream])) as deltas:
        async for _, delta in deltas:
            pieces = parser.push(delta.text)
            if delta.reason is not None:
                pieces += parser.finish()
            events = [event for piece in pieces for event in reply.add(piece)]
            if delta.reason is not None:
                events += reply.end(delta, parser.reason(delta.reason))
            yield events


async def _exhaust(growing: AsyncGenerator[list[Event], None]) -> None:
    async with aclosing(growing):
        async for _ in growing:
            pass


async def _events(
    stream: Stream, growing: AsyncGenerator[list[Event], None], reply: Reply
) -> AsyncIterator[bytes]:
    """An error in mid-stream is an error event, then the stream closes."""
    try:
        async with aclosing(growing):
            async for events in growing:
                if events:
                    yield _encoded(events)
    except Exception as error:
        log_failure(error)
        yield _encoded(reply.failed(error_body(error)[1]["error"]))
    finally:
        stream.cancel()


def _encoded(events: list[Event]) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
