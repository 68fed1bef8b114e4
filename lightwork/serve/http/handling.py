"""What every route does with a request: check it, translate it, hand it to the engine, wait for the reply."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from fastapi import Request

from lightwork.errors import ConstraintError, LightworkError
from lightwork.serve.http.constraints import refused_constraint
from lightwork.serve.http.errors import HttpError
from lightwork.serve.http.schemas import Body, Lenient
from lightwork.serve.http.translate import Served, unknown_fields
from lightwork.serve.sequence import Request as EngineRequest
from lightwork.serve.service import Service, Stream

P = ParamSpec("P")
T = TypeVar("T")

LONG_BODY_BYTES = 32 << 10
log = logging.getLogger(__name__)


class Handling:
    """The steps that routes share, over one service."""

    def __init__(self, service: Service, served: Served) -> None:
        self.service = service
        self.served = served
        self._told: set[str] = set()

    def begin(self, body: Lenient, model: str) -> dict[str, str]:
        """Checks that come before any work; returns the reply's headers."""
        self.service.check_ready()
        self.check_name(model)
        return self.ignored(body)

    def ignored(self, body: Lenient) -> dict[str, str]:
        """The header that names fields nobody defines; each is logged once."""
        unknown = unknown_fields(body)
        for name in (full[:80] for full in unknown):
            if name not in self._told and len(self._told) < 1000:
                self._told.add(name)
                log.warning("requests hold the unknown field %r, which is ignored", name)
        shown = ", ".join(n for n in unknown if n.isascii() and n.isprintable())[:1000]
        return {"x-lightwork-ignored": shown} if unknown else {}

    def check_name(self, name: str) -> None:
        if name not in self.served.names:
            raise HttpError(
                404,
                f"no model is called {name[:80]!r}",
                expected=" or ".join(self.served.names[:20]),
                fix="GET /v1/models",
                param="model",
                code="model_not_found",
            )

    async def translate(
        self, request: Request, make: Callable[P, T], *args: P.args, **settings: P.kwargs
    ) -> T:
        """make(...), on a thread if the body is long: encoding a megabyte must not stop all other replies."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) <= LONG_BODY_BYTES:
            return make(*args, **settings)
        return await asyncio.to_thread(make, *args, **settings)

    async def submit(self, requests: Sequence[EngineRequest], body: Body) -> list[Stream]:
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

    async def until_left(
        self, request: Request, work: Coroutine[Any, Any, T], streams: Sequence[Stream] = ()
    ) -> T:
        """The work's result; if the client leaves first, it is cancelled, which frees its memory."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                raise HttpError(499, "the client left", expected="a client that waits")
            return task.result()
        finally:
            gone.cancel()
            for stream in streams:
                if not task.done():
                    stream.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
