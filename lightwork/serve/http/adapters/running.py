"""One chat on behalf of another API, from its body to the reply's last event."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from lightwork.serve.calls import CallParser
from lightwork.serve.http.adapters import Event, Reply
from lightwork.serve.http.adapters.thinking import Thought, ThoughtParser
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
    thoughts: Thoughts | None = None,
) -> Response:
    """The reply to a chat, whole or streamed as the body says. thoughts: where they are shown apart."""
    [stream] = await handling.submit([engine_request], body)
    growing = _growing(stream, CallParser(reads_calls=body.reads_calls), thoughts, reply)
    if body.stream:
        return event_stream(_events(stream, growing, reply), headers)
    await handling.until_left(request, _exhaust(growing), [stream])
    return JSONResponse(reply.whole(), headers=headers)


class Thoughts(NamedTuple):
    """Finds what is thought before the answer; show: the events of a piece of it."""

    parser: ThoughtParser
    show: Callable[[str], list[Event]]


async def _growing(
    stream: Stream, calls: CallParser, thoughts: Thoughts | None, reply: Reply
) -> AsyncGenerator[list[Event], None]:
    yield reply.begin()
    async with aclosing(arriving([stream])) as deltas:
        async for _, delta in deltas:
            texts: list[Thought | str] = [delta.text]
            if thoughts is not None:
                texts = thoughts.parser.push(delta.text)
                texts += thoughts.parser.finish() if delta.reason is not None else []
            events: list[Event] = []
            for text in texts:
                if thoughts is not None and isinstance(text, Thought):
                    events += thoughts.show(text.text)
                elif isinstance(text, str):
                    events += [event for piece in calls.push(text) for event in reply.add(piece)]
            if delta.reason is not None:
                events += [event for piece in calls.finish() for event in reply.add(piece)]
                events += reply.end(delta, calls.reason(delta.reason))
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
