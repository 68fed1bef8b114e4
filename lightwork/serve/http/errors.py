"""Every error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lightwork.errors import (
    AccessDeniedError,
    BusyError,
    CapacityError,
    InvariantError,
    LightworkError,
    NotReadyError,
    UsageError,
)

log = logging.getLogger(__name__)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
"""Of every error's body, for /openapi.json."""


class HttpError(LightworkError):
    """An error with a status, and the request field it is about."""

    def __init__(
        self,
        status: int,
        wrong: str,
        *,
        expected: str = "",
        fix: str = "",
        param: str | None = None,
        code: str = "",
    ) -> None:
        super().__init__(wrong, expected=expected, fix=fix)
        self.status = status
        self.param = param
        self.code = code


def refused(field: str, why: str, *, expected: str = "", fix: str = "") -> HttpError:
    """A request field that cannot be honoured."""
    return HttpError(400, f"{field} {why}", expected=expected, fix=fix or f"leave {field} out", param=field)


def error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    if isinstance(error, HttpError):
        status, param, code = error.status, error.param, error.code or None
    else:
        status, param, code = _status(error), None, None
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = str(error) if isinstance(error, LightworkError) else "the server failed; its log says why"
    message = message.encode("utf-8", "backslashreplace").decode()  # it may quote half a surrogate pair
    return status, {
        "error": {"message": message, "type": kind, "param": param, "code": code or type(error).__name__}
    }


def _status(error: Exception) -> int:
    if isinstance(error, BusyError):
        return 429
    if isinstance(error, NotReadyError):
        return 503
    if isinstance(error, AccessDeniedError):
        return 403
    if isinstance(error, UsageError | CapacityError):
        return 400
    return 500


def error_response(error: Exception, path: str) -> JSONResponse:
    """path: what was asked for; Anthropic's clients know errors by one field more."""
    status, body = error_body(error)
    if path.startswith("/v1/messages"):
        body = {"type": "error", **body}
    headers = {}
    if isinstance(error, BusyError | NotReadyError):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, NotReadyError):  # the next attempt's connection may reach another server
        headers["Connection"] = "close"
    log_failure(error)
    return JSONResponse(body, status, headers)


def log_failure(error: Exception) -> None:
    """Write an error to the log if it is the server's own."""
    if error_body(error)[0] >= 500 and not isinstance(error, NotReadyError):
        log.error("request failed", exc_info=error)


def invalid_body(error: RequestValidationError) -> HttpError:
    """The first thing that is wrong with a body, with the field's name."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "it does not parse")
        return HttpError(400, f"the body is not JSON: {why}", expected="a JSON object", fix="see /docs")
    return invalid_value(first, 1)


def invalid_value(first: Mapping[str, Any], skip: int) -> HttpError:
    """What pydantic says of one value. skip: leading parts of its location that are no field."""
    where = ".".join(str(p) for p in first["loc"][skip:] if not _UNION_BRANCH.match(str(p)))
    where = where.encode("ascii", "backslashreplace").decode()[:200]
    if first["type"] == "missing":
        return HttpError(
            400, f"{where or 'the body'} is missing", expected="a value", fix="see /docs", param=where or None
        )
    got = ascii(first.get("input"))
    shown = got if len(got) <= 60 else f"{got[:57]}..."
    wrong = f"{where or 'the body'} is {shown}"
    return HttpError(400, wrong, expected=first["msg"][:300], fix="see /docs", param=where or None)


_UNION_BRANCH = re.compile(r"(str|int|list\[.*|literal\[.*|constrained-.*|function-.*)$")
"""What pydantic adds to a location to say which type of a union it tried."""

_PLAIN = {
    404: "a path of /docs",
    405: "a method of /docs for this path",
    400: "a JSON object",
}


def install(app: FastAPI) -> None:
    """Answer every exception of the app in this shape."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return error_response(error, request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(invalid_body(error), request.url.path)

    async def plain(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if isinstance(error.__cause__, HttpError):
            return error_response(error.__cause__, path)
        expected = _PLAIN.get(error.status_code, "what /docs says")
        response = error_response(HttpError(error.status_code, str(error.detail), expected=expected), path)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(LightworkError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(InvariantError, ours)
