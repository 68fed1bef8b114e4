"""What the page asks for, on a running server or over a saved trace."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, FiniteFloat
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lightwork import __version__
from lightwork.claims.results import load as load_claims
from lightwork.plan.why import explain
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.http import errors
from lightwork.serve.http.guard import Guard
from lightwork.serve.http.main import Loaded, listen
from lightwork.serve.run_folder import EVENTS, read_traces
from lightwork.web.agent_routes import agent_routes
from lightwork.web.feed import Feed
from lightwork.web.replay import read_agents
from lightwork.web.same_origin import SameOrigin

if TYPE_CHECKING:
    from lightwork.web.monitor import Monitor

FOLDER = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page speaks to its own server and to nobody else; the browser holds it to that."""
ASSETS = {
    "uPlot.js": "text/javascript",
    "uPlot.css": "text/css",
    "runs.js": "text/javascript",
    "agents_parts.js": "text/javascript",
    "agents.js": "text/javascript",
    "agents.css": "text/css",
}
"""Files that the page is made of beside itself, and what they are."""
MAX_SPANS = 200_000
MAX_BODY_BYTES = 32 << 20

Route = tuple[str, str, Callable[..., Any]]


def add_page(loaded: Loaded) -> None:
    """Put the page of a running server at /ui."""
    feed, service, trace = Feed(), loaded.service, loaded.trace
    trace.observers.append(feed)

    async def source() -> dict[str, Any]:
        return {"live": True, "name": loaded.name}

    spans = _spans(feed, trace, lambda: service.ready)
    _install(loaded.app, [("GET", "/ui/source", source), ("GET", "/ui/feed", spans)])


def watched_app(monitor: Monitor) -> FastAPI:
    """The page of a population that runs."""

    async def source() -> dict[str, Any]:
        return {"live": True, "name": monitor.name, "agents": True}

    spans = _spans(monitor.spans, monitor.trace, lambda: not monitor.ended)
    routes = [("GET", "/ui/source", source), ("GET", "/ui/feed", spans), *agent_routes(monitor)]
    return _app(routes)


def _spans(feed: Feed, trace: Trace, lasts: Callable[[], bool]) -> Callable[..., Any]:
    async def spans() -> Response:
        feed.check_room()
        hello = {"label": trace.label, "about": trace.about}
        events: AsyncIterator[bytes] = feed.events(hello, lasts)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    return spans


def saved_app(run: Path) -> FastAPI:
    """The page over a saved trace, or over a run folder. Raises SpecError if it is neither."""
    file = run / EVENTS if run.is_dir() else run
    agents = read_agents(run)
    told: dict[str, Any] = {"live": False, "name": run.resolve().name, "file": file.name}
    if agents is not None:
        told["agents"] = True
    else:
        read_traces(run)

    async def source() -> dict[str, Any]:
        return told

    async def saved() -> Response:
        kind = "application/json" if file.suffix == ".json" else "application/jsonl"
        return FileResponse(file, media_type=kind, headers={"cache-control": "no-store"})

    more = [] if agents is None else agent_routes(agents)
    return _app([("GET", "/ui/source", source), ("GET", "/ui/file", saved), *more])


def _app(routes: Sequence[Route]) -> FastAPI:
    """A page's own server, for this machine alone."""
    app = FastAPI(title="lightwork", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    _install(app, routes)
    errors.install(app)
    app.add_middleware(SameOrigin)
    app.add_middleware(GZipMiddleware, compresslevel=4)  # not of feeds, which are not to wait
    app.add_middleware(Guard, max_body_bytes=MAX_BODY_BYTES, api_key=None)
    # A name that somebody else points at this machine must not make the trace theirs to read.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return app


def show(run: Path) -> None:
    """Serve the page over a saved trace or a run folder on this machine, until Ctrl-C."""
    app = saved_app(run)
    listener = listen("127.0.0.1", 0)
    listener.listen()  # who reads the address may use it
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/ui   Ctrl-C ends it", file=sys.stderr, flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def _install(app: FastAPI, more: Sequence[Route]) -> None:
    routes: list[Route] = [
        ("GET", "/ui", _page),
        *(("GET", f"/ui/{name}", _asset(name, kind)) for name, kind in ASSETS.items()),
        ("GET", "/ui/claims", _claims),
        ("POST", "/ui/why", _why),
        *more,
    ]
    for method, path, handler in routes:
        app.add_api_route(path, handler, methods=[method], response_model=None, include_in_schema=False)


async def _page() -> Response:
    headers = {
        "content-security-policy": POLICY,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
    }
    return FileResponse(FOLDER / "page.html", media_type="text/html", headers=headers)


def _asset(name: str, media_type: str) -> Callable[..., Any]:
    async def asset() -> Response:
        return FileResponse(FOLDER / name, media_type=media_type, headers={"cache-control": "no-cache"})

    return asset


async def _claims() -> list[dict[str, Any]]:
    standings = await asyncio.to_thread(load_claims)
    return [
        {
            "number": each.system.number,
            "name": each.system.name,
            "title": each.system.title,
            "package": each.system.package,
            "state": each.state,
            "verdicts": each.verdicts,
        }
        for each in standings
    ]


# -- why


class SaidBody(BaseModel):
    """Of a span's args: what `explain` reads."""

    chunks: list[tuple[int, int, int, int, int]] = []
    kv_usage: FiniteFloat = 0.0
    prompt: int = 0


class SpanBody(BaseModel):
    """A span as the feed sent it, or as it was in a file."""

    rank: str
    kind: str
    name: str
    start_s: FiniteFloat
    end_s: FiniteFloat
    args: SaidBody | None = None

    def span(self) -> Span:
        args = self.args.model_dump() if self.args else None
        return Span(self.rank, self.kind, self.name, self.start_s, self.end_s, args=args)


class WhyBody(BaseModel):
    """A sequence, and the spans of its life: those of its own and every step meanwhile."""

    id: int
    spans: list[SpanBody] = Field(max_length=MAX_SPANS)


async def _why(body: WhyBody) -> dict[str, Any]:
    """What `lightwork why FILE ID --json` prints, of the spans given: a page may show any run."""
    parts = await asyncio.to_thread(lambda: explain([each.span() for each in body.spans], body.id))
    seconds = sum(part.seconds for part in parts)
    return {"id": body.id, "seconds": seconds, "parts": [part._asdict() for part in parts]}
