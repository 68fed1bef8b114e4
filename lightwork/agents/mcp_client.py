"""Tools of an MCP server (Model Context Protocol), a process of this machine or a URL.

    with connect_mcp(["python", "their_server.py"]) as server:          # or "https://host/mcp"
        toolbox = Toolbox.of(kernel, [*server.tools, *own_tools])

A server that refuses a call, answers what it did not declare, or dies, makes that call an observation.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from lightwork.agents.asyncio_thread import AsyncioThread
from lightwork.agents.tool import Tool, ToolEffect
from lightwork.errors import LightworkError, MissingExtraError, RemoteError, UsageError

if TYPE_CHECKING:
    import mcp
    import mcp.types

START_S = 60.0
"""Until a server has said which tools it has."""
SHOWN = 1000


class McpServer:
    """A connection to a server, open until `close`. tools: those it has, as of when it was opened."""

    tools: Sequence[Tool]

    def __init__(
        self, told: str, transport: Callable[[TextIO], Any], *, deadline_s: float, prefix: str
    ) -> None:
        self._told, self._deadline_s = told, deadline_s
        self._client: mcp.Client | None = None
        self._ready: Future[list[mcp.types.Tool]] = Future()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._thread = AsyncioThread(f"lightwork-mcp {told}")
        self._thread.start(self._hold(transport))
        try:
            found = self._ready.result(START_S)
        except (Exception, CancelledError) as error:
            wrong = f"the MCP server {told} did not start: {_why(error)}{self._said()}"
            self.close()
            raise RemoteError(
                wrong, expected="a server that speaks MCP", fix="start it by hand to see"
            ) from error
        self.tools = [self._tool(one, prefix) for one in found]

    def close(self) -> None:
        """End the connection, and the server if it is our process."""
        self._thread.close()
        self._errors.close()

    def __enter__(self) -> McpServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _hold(self, transport: Callable[[TextIO], Any]) -> None:
        """The connection, from its beginning to its end in one task, as anyio wants it."""
        from mcp import Client

        try:
            async with Client(transport(self._errors), read_timeout_seconds=self._deadline_s) as client:
                self._client = client
                self._ready.set_result(await _list(client))
                await asyncio.Event().wait()  # until it is cancelled
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            elif not isinstance(error, Exception):
                raise
        finally:
            self._client = None

    def _tool(self, one: mcp.types.Tool, prefix: str) -> Tool:
        return Tool(
            name=prefix + one.name,
            description=one.description or one.title or "",
            parameters=one.input_schema,
            fn=partial(self._call, one.name),
            effect=_effect(one),
            deadline_s=self._deadline_s,
        )

    def _call(self, name: str, /, **arguments: Any) -> Any:
        """On a tool's thread."""
        try:
            result = self._thread.start(self._ask(name, arguments)).result()
        except LightworkError:
            raise
        except (Exception, CancelledError) as error:
            raise RemoteError(
                f"{name} of the MCP server {self._told}: {_why(error)}", expected="an answer as it declares"
            ) from error
        if result.is_error:
            raise UsageError(_text(result))
        return _text(result) if result.structured_content is None else result.structured_content

    async def _ask(self, name: str, arguments: dict[str, Any]) -> mcp.types.CallToolResult:
        if self._client is None:
            raise RemoteError(f"the MCP server {self._told} has ended", expected="one that runs")
        return await self._client.call_tool(name, arguments)

    def _said(self) -> str:
        """The end of what the server's process wrote on its standard error."""
        self._errors.seek(0)
        said = self._errors.read()[-SHOWN:].strip()
        return f"; it said: {said}" if said else ""


def connect_mcp(
    where: str | Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    deadline_s: float = 60.0,
    prefix: str = "",
) -> McpServer:
    """where: a URL, or a command and its arguments. env: for that command, beside what it needs to run.
    deadline_s: of each call. prefix: before the names of its tools. Raises RemoteError if there is no such
    server.
    """
    try:
        from mcp import StdioServerParameters, stdio_client
    except ModuleNotFoundError:
        raise MissingExtraError("mcp", "mcp") from None
    if isinstance(where, str):
        return McpServer(where, lambda errors: where, deadline_s=deadline_s, prefix=prefix)
    command, *args = where
    started = StdioServerParameters(command=command, args=args, env=dict(env or {}))
    return McpServer(
        command, lambda errors: stdio_client(started, errlog=errors), deadline_s=deadline_s, prefix=prefix
    )


async def _list(client: mcp.Client) -> list[mcp.types.Tool]:
    tools: list[mcp.types.Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor:
            return tools


def _effect(one: mcp.types.Tool) -> ToolEffect:
    """By the hints that its server gives; without any, it may change something."""
    hints = one.annotations
    if hints is None:
        return "write"
    if hints.read_only_hint:
        return "read"
    return "irreversible" if hints.destructive_hint else "write"


def _text(result: mcp.types.CallToolResult) -> str:
    """The text of a result; what is none is named."""
    parts = []
    for block in result.content:
        text = getattr(block, "text", None)
        parts.append(text if isinstance(text, str) else f"[{block.type}]")
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _why(error: BaseException) -> str:
    """The first error of a group that says something."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".rstrip(": ")[:SHOWN]
