"""What happens around every request: its id, the api key, the size of its body, errors nobody foresaw."""

from __future__ import annotations

import secrets

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightwork.serve.http.errors import HttpError, error_response

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})


class Guard:
    """ASGI middleware. max_body_bytes holds for chunked bodies too: reading stops where it is passed."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, api_key: str | None) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")[:128] or secrets.token_hex(12).encode()

        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        problem: Exception | None = self._unauthorised(scope["path"], headers) or self._too_long(headers)
        if problem is None:
            body = _Body(receive, self.max_body_bytes)
            try:
                await self.app(scope, body.receive, send_with_id)
            except Exception as error:
                if started:
                    raise
                problem = error
            else:
                return
        await error_response(problem, scope["path"])(scope, receive, send_with_id)

    def _unauthorised(self, path: str, headers: dict[bytes, bytes]) -> HttpError | None:
        if self.api_key is None or path in OPEN_PATHS:
            return None
        bearer = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        given = bearer or headers.get(b"x-api-key", b"")
        if secrets.compare_digest(given, self.api_key.encode()):
            return None
        return HttpError(
            401, "the api key is missing or wrong", expected="Authorization: Bearer KEY, or x-api-key: KEY"
        )

    def _too_long(self, headers: dict[bytes, bytes]) -> HttpError | None:
        length = headers.get(b"content-length", b"0")
        over = not length.isdigit() or int(length) > self.max_body_bytes
        return _over(self.max_body_bytes) if over else None


def _over(limit: int) -> HttpError:
    return HttpError(
        413, "the request's body is too long", expected=f"at most {limit} bytes", fix="send less"
    )


class _Body:
    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = self._left = limit

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise HTTPException(413) from _over(self._limit)
        return message
