"""The server's routes, and what /openapi.json says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse

from lightwork import __version__
from lightwork.serve.http import errors
from lightwork.serve.http.about import About
from lightwork.serve.http.adapters.messages import Messages
from lightwork.serve.http.adapters.responses import Responses
from lightwork.serve.http.completions import Completions
from lightwork.serve.http.embeddings import Embeddings
from lightwork.serve.http.guard import Guard
from lightwork.serve.http.handling import Handling
from lightwork.serve.http.metrics import Metrics
from lightwork.serve.http.translate import Served
from lightwork.serve.service import Service


class Route(NamedTuple):
    """One route. holds: what is always in its reply, which is JSON; "": text. streams: whether it may be
    server-sent events instead."""

    method: str
    path: str
    handler: Callable[..., Any]
    holds: str
    streams: bool = False


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
    handling = Handling(service, served)
    app = FastAPI(title="lightwork", version=__version__)
    for route in _routes(handling, metrics, created):
        app.add_api_route(
            route.path,
            route.handler,
            methods=[route.method],
            response_model=None,
            response_class=JSONResponse if route.holds else PlainTextResponse,
            responses=_replies(route),
        )
    errors.install(app)
    app.add_middleware(Guard, max_body_bytes=max_body_bytes, api_key=api_key)
    return app


def _routes(handling: Handling, metrics: Metrics, created: int) -> Sequence[Route]:
    completions, messages, responses = Completions(handling), Messages(handling), Responses(handling)
    about = About(handling, metrics, created)
    chosen = "id object created model choices usage timings"
    response = "id object created_at model status output usage error incomplete_details"
    message = "id type role model content stop_reason stop_sequence usage"
    model = "id object created owned_by max_model_len"
    embedded = "object data model usage"
    return [
        Route("POST", "/v1/chat/completions", completions.chat, chosen, streams=True),
        Route("POST", "/v1/completions", completions.complete, chosen, streams=True),
        Route("POST", "/v1/embeddings", Embeddings(handling).create, embedded),
        Route("POST", "/v1/responses", responses.create, response, streams=True),
        Route("GET", "/v1/responses/{response_id}", responses.get, response),
        Route("DELETE", "/v1/responses/{response_id}", responses.delete, "id object deleted"),
        Route("POST", "/v1/messages", messages.create, message, streams=True),
        Route("POST", "/v1/messages/count_tokens", messages.count_tokens, "input_tokens"),
        Route("GET", "/v1/models", about.models, "object data"),
        Route("GET", "/v1/models/{name:path}", about.model, model),
        Route("POST", "/tokenize", about.tokenize, "tokens count max_model_len"),
        Route("POST", "/detokenize", about.detokenize, "prompt"),
        Route("GET", "/health", about.health, "status"),
        Route("GET", "/ready", about.ready, "status"),
        Route("GET", "/metrics", about.prometheus, ""),
    ]


def _replies(route: Route) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for /openapi.json: errors all have one shape."""
    json_object = {"type": "object", "required": route.holds.split(), "title": "Reply"}
    content: dict[str, Any] = {"application/json": {"schema": json_object}} if route.holds else {}
    if route.streams:
        event = {"data": {"type": "string"}, "event": {"type": "string"}}
        content["text/event-stream"] = {
            "schema": {"type": "object", "required": ["data"], "properties": event}
        }
    failed = {"content": {"application/json": {"schema": errors.SCHEMA}}}
    return {
        200: {"description": "The reply", **({"content": content} if content else {})},
        "4XX": {"description": "The request is wrong, too much, or too early", **failed},
        "5XX": {"description": "The server takes no requests, or failed", **failed},
    }
