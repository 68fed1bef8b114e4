"""Refuses what a page of somebody else's asks a server on this machine to do."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from lightwork.errors import AccessDeniedError
from lightwork.serve.http.errors import error_response


class SameOrigin:
    """ASGI middleware: a browser says where a request comes from, and only a page of this server may change
    something. Programs that are no browsers say nothing, and are let through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            headers = dict(scope["headers"])
            origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site", b"none")
            ours = b"http://" + headers.get(b"host", b"")
            if (origin is not None and origin != ours) or site not in (b"same-origin", b"none"):
                denied = AccessDeniedError(
                    "another page asks this server to change something", expected=f"a page of {ours.decode()}"
                )
                await error_response(denied, scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)
