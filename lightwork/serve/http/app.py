"""The routes of the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from lightwork import __version__
from lightwork.errors import ConstraintError, LightworkError
from lightwork.runtime.clock import unix_s
from lightwork.serve.http import errors, replies
from lightwork.serve.http.choices import ChatChoices, CompletionChoices
from lightwork.serve.http.constraints import refused_constraint
from lightwork.serve.http.guard import Guard
from lightwork.serve.http.metrics import Metrics
from lightwork.serve.http.schemas import Body, ChatBody, CompletionBody, DetokenizeBody, Lenient, TokenizeBody
from lightwork.serve.http.translate import (
    Served,
    chat_request,
    completion_requests,
    tokenize_ids,
    unknown_fields,
)
from lightwork.serve.sequence import Request as EngineRequest
from lightwork.serve.service import Service, Stream

P = ParamSpec("P")
T = TypeVar("T")

LONG_BODY_BYTES = 32 << 10
log = logging.getLogger(__name__)


class Api:
    """The handlers, over one service."""

    def __init__(self, service: Service, served: Served, metrics: Metrics, created: int) -> None:
        self.service = service
        self.served = served
        self.metrics = metrics
        self.created = created
        self._told: set[str] = set()

    async def chat(self, body: ChatBody, request: Request) -> Response:
        headers = self._begin(body)
        requests = [await self._translate(request, chat_request, body, self.served)]
        shape = ChatChoices(body, self.served.tokenizer)
        streams = await self._submit(requests, body)
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        frame = self._frame("chatcmpl", kind, body.model)
        if body.stream:
            return self._stream(streams, frame, shape.piece, body, headers, shape.opening())
        choices = await self._until_left(request, replies.collect(streams), streams)
        if body.prompt_logprobs is not None:
            picks = choices[0].prompt_picks
            frame["prompt_logprobs"] = replies.prompt_logprobs(
                requests[0].prompt, picks, self.served.tokenizer
            )
        return self._whole(frame, [shape.whole(c) for c in choices], choices, requests, headers)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        headers = self._begin(body)
        requests = await self._translate(request, completion_requests, body, self.served)
        shape = CompletionChoices(body, requests, self.served.tokenizer)
        streams = await self._submit(requests, body)
        frame = self._frame("cmpl", "text_completion", body.model)
        if body.stream:
            return self._stream(streams, frame, shape.piece, body, headers)
        choices = await self._until_left(request, replies.collect(streams), streams)
        return self._whole(frame, [shape.whole(c) for c in choices], choices, requests, headers)

    # -- shared steps

    def _begin(self, body: Body) -> dict[str, str]:
        """Checks that come before any work; returns the reply's headers."""
        self.service.check_ready()
        self._check_name(body.model)
        return self._ignored(body)

    def _ignored(self, body: Lenient) -> dict[str, str]:
        """The header that names fields nobody defines; each is logged once."""
        unknown = unknown_fields(body)
        for name in unknown:
            if name not in self._told and len(self._told) < 1000:
                self._told.add(name)
                log.warning("requests hold the unknown field %r, which is ignored", name[:80])
        shown = ", ".join(n for n in unknown if n.isascii() and n.isprintable())[:1000]
        return {"x-lightwork-ignored": shown} if unknown else {}

    def _check_name(self, name: str) -> None:
        if name not in self.served.names:
            raise errors.HttpError(
                404,
                f"no model is called {name[:80]!r}",
                expected=" or ".join(self.served.names[:20]),
                fix="GET /v1/models",
                param="model",
                code="model_not_found",
            )

    async def _translate(
        self, request: Request, make: Callable[P, T], *args: P.args, **settings: P.kwargs
    ) -> T:
        """make(...), on a thread if the body is long: encoding a megabyte must not stop all other replies."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) <= LONG_BODY_BYTES:
            return make(*args, **settings)
        return await asyncio.to_thread(make, *args, **settings)

    async def _submit(self, requests: Sequence[EngineRequest], body: Body) -> list[Stream]:
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(await self.service.submit(request, body.stops))
        except BaseException as error:
            for stream in streams:
                stream.cancel()
            if isinstance(error, ConstraintError):
                raise refused_constraint(body, error) from error
            if isinstance(error, LightworkError):
                self.service.check_ready()
            raise
        return streams

    def _frame(self, prefix: str, kind: str, model: str) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": unix_s(),
            "model": model,
        }

    def _stream(
        self,
        streams: Sequence[Stream],
        frame: dict[str, Any],
        piece: replies.MakeChoice,
        body: Body,
        headers: dict[str, str],
        opening: Sequence[dict[str, Any]] = (),
    ) -> Response:
        parts: AsyncIterator[bytes] = replies.events(
            streams,
            frame,
            piece,
            with_usage=bool(body.stream_options and body.stream_options.include_usage),
            opening=opening,
        )
        return StreamingResponse(
            parts, media_type="text/event-stream", headers={"cache-control": "no-cache", **headers}
        )

    def _whole(
        self,
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

    async def _until_left(
        self, request: Request, work: Coroutine[Any, Any, list[replies.Choice]], streams: Sequence[Stream]
    ) -> list[replies.Choice]:
        """The work's result; if the client leaves first, it is cancelled, which frees its memory."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                raise errors.HttpError(499, "the client left", expected="a client that waits")
            return task.result()
        finally:
            gone.cancel()
            for stream in streams:
                if not task.done():
                    stream.cancel()

    # -- the small routes

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model(name) for name in self.served.names]}

    def _model(self, name: str) -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": self.created, "owned_by": "lightwork"}
        parent = {} if name == self.served.name else {"parent": self.served.name}
        return {**model, **parent, "max_model_len": self.served.limits.max_len}

    async def model(self, name: str) -> dict[str, Any]:
        self._check_name(name)
        return self._model(name)

    async def tokenize(self, body: TokenizeBody, request: Request) -> Response:
        headers = self._begin_small(body)
        ids = await self._translate(request, tokenize_ids, body, self.served)
        shown = {"tokens": ids, "count": len(ids), "max_model_len": self.served.limits.max_len}
        return JSONResponse(shown, headers=headers)

    async def detokenize(self, body: DetokenizeBody, request: Request) -> Response:
        headers = self._begin_small(body)
        if not all(0 <= t < self.served.vocab_size for t in body.tokens):
            raise errors.refused(
                "tokens", "hold an unknown token", expected=f"0 to {self.served.vocab_size - 1}"
            )
        text = await self._translate(request, self.served.tokenizer.decode, body.tokens)
        return JSONResponse({"prompt": text}, headers=headers)

    def _begin_small(self, body: TokenizeBody | DetokenizeBody) -> dict[str, str]:
        if body.model is not None:
            self._check_name(body.model)
        return self._ignored(body)

    async def health(self) -> dict[str, str]:
        """As peers' users know it: whether to send requests here, and whether to leave the process alone."""
        self.service.check_ready()
        return {"status": "alive"}

    async def ready(self) -> dict[str, str]:
        self.service.check_ready()
        return {"status": "ready"}

    async def prometheus(self) -> Response:
        """Read as they are, not asked of the engine's thread, so that they come from a stuck one too."""
        text = self.metrics.text(*self.service.engine.gauges)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(
    service: Service,
    served: Served,
    metrics: Metrics,
    *,
    created: int = 0,
    api_key: str | None = None,
    max_body_bytes: int = 4 << 20,
) -> FastAPI:
    """The ASGI application. created: Unix time the model was loaded, shown in replies."""
    api = Api(service, served, metrics, created)
    app = FastAPI(title="lightwork", version=__version__)
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("POST", "/v1/chat/completions", api.chat),
        ("POST", "/v1/completions", api.complete),
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{name:path}", api.model),
        ("POST", "/tokenize", api.tokenize),
        ("POST", "/detokenize", api.detokenize),
        ("GET", "/health", api.health),
        ("GET", "/ready", api.ready),
        ("GET", "/metrics", api.prometheus),
    ]
    for method, path, handler in routes:
        app.add_api_route(path, handler, methods=[method], response_model=None)
    errors.install(app)
    app.add_middleware(Guard, max_body_bytes=max_body_bytes, api_key=api_key)
    return app
