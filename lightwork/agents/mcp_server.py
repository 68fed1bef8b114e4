"""Our tools for MCP clients: any program that speaks the Model Context Protocol may call them.

    serve_mcp(load_tools("my_tools.py"))                     # over standard input and output, until they end
    serve_mcp(tools, host="127.0.0.1", port=8100)            # over HTTP, at /mcp, until Ctrl-C

Calls go through a Toolbox, so limits, deadlines, checks and sizes are those of every other caller.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable, Mapping
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lightwork.agents.chat_model import ToolCall
from lightwork.agents.tool import Observation, Tool, Toolbox, ToolEffect
from lightwork.errors import MissingExtraError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import say

if TYPE_CHECKING:
    import mcp.types
    from mcp.server.lowlevel import Server

NAME = "lightwork"


class ToolServer:
    """Tools on a kernel of their own, whose thread runs inside a `with`. server: of the mcp library, for any
    transport."""

    def __init__(self, tools: Iterable[Tool], name: str = NAME) -> None:
        try:
            from mcp.server.lowlevel import Server
        except ModuleNotFoundError:
            raise MissingExtraError("mcp", "mcp") from None
        self._kernel = Kernel(WallClock())
        self._toolbox = Toolbox.of(self._kernel, tools)
        self._ids = count(1)
        self._thread = threading.Thread(target=self._kernel.run, name="lightwork-tools", daemon=True)
        self.server: Server[Any] = Server(name, on_list_tools=self._list, on_call_tool=self._call)

    def __enter__(self) -> ToolServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kernel.stop()
        self._thread.join()
        self._kernel.close()

    async def _list(self, context: Any, params: Any) -> mcp.types.ListToolsResult:
        from mcp.types import ListToolsResult

        return ListToolsResult(tools=[_described(tool) for tool in self._toolbox.tools.values()])

    async def _call(self, context: Any, params: mcp.types.CallToolRequestParams) -> mcp.types.CallToolResult:
        from mcp.types import CallToolResult, TextContent

        seen = await self._observe(ToolCall(f"call_{next(self._ids)}", params.name, params.arguments or {}))
        text = seen.error or seen.text
        content = [TextContent(type="text", text=text)]
        if isinstance(seen.value, Mapping) and not seen.error and (read := _object(text)) is not None:
            return CallToolResult(content=[*content], structured_content=read)
        return CallToolResult(content=[*content], is_error=bool(seen.error))

    async def _observe(self, call: ToolCall) -> Observation:
        """In the client's asyncio loop; the call itself goes on at the kernel."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Observation] = loop.create_future()

        def tell(observation: Observation) -> None:
            if not done.done():
                done.set_result(observation)

        def start() -> None:
            self._toolbox.call(call).add_callback(ended)

        def ended(future: Future) -> None:
            loop.call_soon_threadsafe(tell, future.value)

        self._kernel.post(start)
        return await done


def _object(text: str) -> dict[str, Any] | None:
    """What a client may have as an object: not what was cut."""
    try:
        read = json.loads(text)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _described(tool: Tool) -> mcp.types.Tool:
    from mcp.types import Tool as Described
    from mcp.types import ToolAnnotations

    return Described(
        name=tool.name,
        description=tool.description,
        input_schema={"type": "object", **tool.parameters},
        annotations=ToolAnnotations(
            read_only_hint=_changes_nothing(tool.effect), destructive_hint=tool.effect == "irreversible"
        ),
    )


def _changes_nothing(effect: ToolEffect) -> bool:
    return effect in ("pure", "read")


def serve_mcp(
    tools: Iterable[Tool], *, name: str = NAME, host: str = "127.0.0.1", port: int | None = None
) -> None:
    """Serve until the client goes, or Ctrl-C. port: None speaks over standard input and output, 0 takes any
    free one. Raises UsageError if the address cannot be had.
    """
    with ToolServer(tools, name) as served:
        if port is None:
            asyncio.run(_over_stdio(served.server))
        else:
            _over_http(served.server, host, port)


async def _over_stdio(server: Server[Any]) -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def _over_http(server: Server[Any], host: str, port: int) -> None:
    import uvicorn

    from lightwork.serve.http.main import listen

    listener = listen(host, port)
    try:
        app = server.streamable_http_app(host=host)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        listener.listen()
        say(f"  MCP at http://{host}:{listener.getsockname()[1]}/mcp")
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()
