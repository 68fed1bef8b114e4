"""The routes of the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from lightwork import __version__
from lightwork.decode.sampling import Pick
from lightwork.errors import LightworkError
from lightwork.serve.http import errors, replies
from lightwork.serve.http.guard import Guard
from lightwork.serve.http.metrics import Metrics
from lightwork.serve.http.schemas import Body, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from lightwork.serve.http.translate import (
    Served,
    chat_request,
    completion_requests,
    message_dict,
    unknown_fields,
)
from lightwork.serve.sequence import Request as EngineRequest
from lightwork.serve.service import Delta, Service, Stream

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
        engine_request = chat_request(body, self.served)
        streams = await self._submit([engine_request], body)
        frame = self._frame("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion")
        if body.stream:
            return self._stream(streams, frame, self._chat_delta(body), body, headers, opening=True)
        choices = await self._until_left(request, replies.collect(streams), streams)
        shown = [
            {
                "index": c.index,
                "message": {"role": "assistant", "content": c.text, "refusal": None},
                "logprobs": replies.chat_logprobs(c.picks, self.served.tokenizer) if body.logprobs else None,
                "finish_reason": c.reason,
            }
            for c in choices
        ]
        return self._whole(frame, shown, choices, [engine_request], headers)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        headers = self._begin(body)
        requests = completion_requests(body, self.served)
        streams = await self._submit(requests, body)
        frame = self._frame("cmpl", "text_completion")
        if body.stream:
            return self._stream(streams, frame, self._completion_delta(body, requests), body, headers)
        choices = await self._until_left(request, replies.collect(streams), streams)
        shown = [self._completion_choice(c, requests[c.index // body.n], body) for c in choices]
        return self._whole(frame, shown, choices, requests, headers)

    def _completion_choice(
        self, c: replies.Choice, request: EngineRequest, body: CompletionBody
    ) -> dict[str, Any]:
        tokenizer = self.served.tokenizer
        picks, text = c.picks, c.text
        if body.echo:
            text = tokenizer.decode(request.prompt) + text
            picks = [Pick(request.prompt[0]), *c.prompt_picks, *picks] if body.logprobs is not None else picks
        shown: dict[str, Any] = {"index": c.index, "text": text, "finish_reason": c.reason, "logprobs": None}
        if body.logprobs is not None:
            shown["logprobs"] = replies.completion_logprobs(picks, tokenizer)
        if body.prompt_logprobs is not None:
            shown["prompt_logprobs"] = replies.prompt_logprobs(request.prompt, c.prompt_picks, tokenizer)
        return shown

    def _chat_delta(self, body: ChatBody) -> replies.MakeChoice:
        def make(delta: Delta) -> dict[str, Any] | None:
            if not (delta.text or delta.picks or delta.reason):
                return None
            logprobs = replies.chat_logprobs(delta.picks, self.served.tokenizer) if body.logprobs else None
            reason = replies.REASONS[delta.reason] if delta.reason else None
            if not delta.text and logprobs is None and reason is None:
                return None
            content = {"content": delta.text} if delta.text or reason is None else {}
            return {"index": delta.index, "delta": content, "logprobs": logprobs, "finish_reason": reason}

        return make

    def _completion_delta(
        self, body: CompletionBody, requests: Sequence[EngineRequest]
    ) -> replies.MakeChoice:
        if body.echo and len(requests) > 1:
            raise errors.refused("echo", "with several prompts cannot be streamed", expected="stream: false")
        if body.echo and body.logprobs is not None:
            raise errors.refused("echo", "with logprobs cannot be streamed", expected="stream: false")
        echoed = set(range(body.n)) if body.echo else set()

        def make(delta: Delta) -> dict[str, Any] | None:
            text = delta.text
            if delta.index in echoed:
                echoed.discard(delta.index)
                text = self.served.tokenizer.decode(requests[0].prompt) + text
            reason = replies.REASONS[delta.reason] if delta.reason else None
            shows = body.logprobs is not None and delta.picks
            if not text and not shows and reason is None:
                return None
            logprobs = replies.completion_logprobs(delta.picks, self.served.tokenizer) if shows else None
            return {"index": delta.index, "text": text, "logprobs": logprobs, "finish_reason": reason}

        return make

    # -- shared steps

    def _begin(self, body: Body) -> dict[str, str]:
        """Checks that come before any work; returns the reply's headers."""
        if not self.service.ready:
            raise errors.NotReadyError(
                "the server is shutting down", expected="a running server", fix="try another"
            )
        if body.model != self.served.name:
            raise errors.HttpError(
                404,
                f"no model is called {body.model[:80]!r}",
                expected=self.served.name,
                param="model",
                code="model_not_found",
            )
        unknown = unknown_fields(body)
        for name in unknown:
            if name not in self._told and len(self._told) < 1000:
                self._told.add(name)
                log.warning("requests hold the unknown field %r, which is ignored", name[:80])
        shown = ", ".join(n for n in unknown if n.isascii() and n.isprintable())[:1000]
        return {"x-lightwork-ignored": shown} if unknown else {}

    async def _submit(self, requests: Sequence[EngineRequest], body: Body) -> list[Stream]:
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(await self.service.submit(request, body.stops))
        except LightworkError:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _frame(self, prefix: str, kind: str) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": self.created,
            "model": self.served.name,
        }

    def _stream(
        self,
        streams: Sequence[Stream],
        frame: dict[str, Any],
        make: replies.MakeChoice,
        body: Body,
        headers: dict[str, str],
        *,
        opening: bool = False,
    ) -> Response:
        role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        parts: AsyncIterator[bytes] = replies.events(
            streams,
            frame,
            make,
            num_prompt=sum(len(s.request.prompt) for s in streams),
            with_usage=bool(body.stream_options and body.stream_options.include_usage),
            opening=[{"index": i, **role} for i in range(body.n)] if opening else (),
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
        num_prompt = sum(len(r.prompt) for r in requests)
        body = {
            **frame,
            "choices": shown,
            "usage": replies.usage_object(usages, num_prompt),
            "timings": replies.timings_object(usages),
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
        model = {"id": self.served.name, "object": "model", "created": self.created, "owned_by": "lightwork"}
        return {"object": "list", "data": [{**model, "max_model_len": self.served.limits.max_len}]}

    async def model(self, name: str) -> dict[str, Any]:
        if name != self.served.name:
            raise errors.HttpError(
                404, f"no model is called {name[:80]!r}", expected=self.served.name, param="model"
            )
        found: dict[str, Any] = (await self.models())["data"][0]
        return found

    async def tokenize(self, body: TokenizeBody) -> dict[str, Any]:
        if (body.prompt is None) == (body.messages is None):
            raise errors.refused(
                "prompt", "or messages, one of the two, must be given", fix="send one of them"
            )
        tokenizer = self.served.tokenizer
        if body.messages is not None:
            ids = tokenizer.chat([message_dict(m) for m in body.messages])
        else:
            ids = tokenizer.encode(body.prompt or "", add_special=body.add_special_tokens)
        return {"tokens": ids, "count": len(ids), "max_model_len": self.served.limits.max_len}

    async def detokenize(self, body: DetokenizeBody) -> dict[str, str]:
        if not all(0 <= t < self.served.vocab_size for t in body.tokens):
            raise errors.refused(
                "tokens", "hold an unknown token", expected=f"0 to {self.served.vocab_size - 1}"
            )
        return {"prompt": self.served.tokenizer.decode(body.tokens)}

    async def health(self) -> dict[str, str]:
        return {"status": "alive"}

    async def ready(self) -> dict[str, str]:
        if not self.service.ready:
            raise errors.NotReadyError(
                "the server takes no requests", expected="a running engine", fix="wait, or restart"
            )
        return {"status": "ready"}

    async def prometheus(self) -> Response:
        now = await self.service.ask(lambda e: (len(e.running), len(e.waiting), e.kv.usage))
        return Response(self.metrics.text(*now), media_type="text/plain; version=0.0.4; charset=utf-8")


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
