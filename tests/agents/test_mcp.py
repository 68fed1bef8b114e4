"""MCP both ways, between real processes: their tools for us, ours for them, and a server that dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lightwork.agents.chat_model import ToolCall
from lightwork.agents.tool import Observation, Tool, Toolbox
from lightwork.errors import RemoteError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel

pytest.importorskip("mcp")

from lightwork.agents.mcp_client import connect_mcp

pytestmark = pytest.mark.multiproc
ROOT = str(Path(__file__).parents[2])
OURS = """
import os, sys, threading
from datetime import date
from typing import Any
from lightwork.agents.functions import tool
from lightwork.agents.mcp_server import serve_mcp

@tool(effect="pure")
def add(a: int, b: int = 1) -> int:
    '''Add.

    a: the first.
    '''
    print("not for the protocol")
    os.system("echo nor is this")
    return a + b

@tool(effect="irreversible")
def place(name: str) -> dict[str, Any]:
    return {"name": name, "day": date(2026, 1, 2)}

@tool(deadline_s=0.05)
def hang() -> str:
    threading.Event().wait()

serve_mcp([add, place, hang], port=int(sys.argv[1]) if len(sys.argv) > 1 else None)
"""
THEIRS = """
import asyncio, os, sys
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, ListToolsResult, TextContent, Tool, ToolAnnotations

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOLS = {
    "lie": Tool(name="lie", input_schema={"type": "object"}, output_schema=NUMBER),
    "refuse": Tool(name="refuse", input_schema={"type": "object"}),
    "die": Tool(name="die", input_schema={"type": "object"}),
    "read": Tool(name="read", input_schema=NUMBER, annotations=ToolAnnotations(read_only_hint=True)),
}

async def list_tools(context, params):
    return ListToolsResult(tools=[*TOOLS.values()])

async def call_tool(context, params):
    if params.name == "die":
        os._exit(3)
    text = [TextContent(type="text", text=f"{params.name} {params.arguments}")]
    if params.name == "lie":
        return CallToolResult(content=text, structured_content={"n": "no number"})
    return CallToolResult(content=text, is_error=params.name == "refuse")

async def main():
    server = Server("theirs", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

if "fail" in sys.argv:
    print("cannot start: no key", file=sys.stderr)
    sys.exit(2)
asyncio.run(main())
"""


def command(tmp_path: Path, text: str, *args: str) -> list[str]:
    file = tmp_path / "a_server.py"
    file.write_text(text)
    return [sys.executable, str(file), *args]


def observe(tools: Any, *calls: tuple[str, dict[str, Any]]) -> list[Observation]:
    kernel = Kernel(WallClock())
    box = Toolbox.of(kernel, tools)

    async def main() -> list[Observation]:
        seen = []
        for i, (name, arguments) in enumerate(calls):
            seen.append(await box.call(ToolCall(str(i), name, arguments)))
        return seen

    observations: list[Observation] = kernel.run(main())
    return observations


def check_ours(tools: list[Tool]) -> None:
    add, place, hang = tools
    assert (add.name, add.description, add.effect) == ("add", "Add.", "read")
    assert add.parameters["properties"]["a"] == {"type": "integer", "description": "the first."}
    assert (place.effect, hang.effect) == ("irreversible", "read")
    good, named, wrong, unknown, late = observe(
        tools,
        ("add", {"a": 2, "b": 3}),
        ("place", {"name": "home"}),
        ("add", {"a": "x"}),
        ("add", {"a": 1, "c": 1}),
        ("hang", {}),
    )
    assert good.text == "5"
    assert named.value == {"name": "home", "day": "2026-01-02"}
    assert "a: Input should be a valid integer" in wrong.error
    assert "there is no argument 'c'" in unknown.error
    assert "did not answer in 0.05 s" in late.error


def test_our_tools_over_standard_streams(tmp_path: Path):
    with connect_mcp(command(tmp_path, OURS), env={"PYTHONPATH": ROOT}) as server:
        check_ours([*server.tools])


@contextmanager
def http_server(arguments: list[str]) -> Iterator[str]:
    child = subprocess.Popen(arguments, stderr=subprocess.PIPE, env={"PYTHONPATH": ROOT}, text=True)
    try:
        assert child.stderr is not None
        line = child.stderr.readline()
        assert "MCP at" in line, line + child.stderr.read()
        yield line.split()[-1]
    finally:
        child.terminate()
        child.communicate(timeout=60)


def test_our_tools_over_http(tmp_path: Path):
    with http_server(command(tmp_path, OURS, "0")) as url, connect_mcp(url) as server:
        check_ours([*server.tools])


def test_tools_of_another_server_that_lies_refuses_and_dies(tmp_path: Path):
    with connect_mcp(command(tmp_path, THEIRS), prefix="their_") as server:
        names = [f"their_{name}" for name in ("lie", "refuse", "die", "read")]
        assert [tool.name for tool in server.tools] == names
        assert [tool.effect for tool in server.tools] == ["write", "write", "write", "read"]
        read, lie, refuse, die, after = observe(
            server.tools,
            ("their_read", {"n": 1}),
            ("their_lie", {}),
            ("their_refuse", {}),
            ("their_die", {}),
            ("their_read", {"n": 2}),
        )
    assert read.text == "read {'n': 1}"
    assert "Invalid structured content" in lie.error
    assert refuse.error == "refuse {}"
    assert "die of the MCP server" in die.error
    assert "the MCP server" in after.error


def test_a_server_that_does_not_start_says_why(tmp_path: Path):
    with pytest.raises(RemoteError, match="no key"):
        connect_mcp(command(tmp_path, THEIRS, "fail"))
    with pytest.raises(RemoteError, match="did not start"):
        connect_mcp([str(tmp_path / "nothing")])
    with pytest.raises(RemoteError, match="did not start"):
        connect_mcp("http://127.0.0.1:9/mcp")
