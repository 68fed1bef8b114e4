"""Memory and storage as tools: programs and their models use them as any other.

Each acts for the agent that it was made for. Where another `owner` can be named, `AIOS` has seen to it that
the agent may read what is his.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightwork.agents.aios.memory import Memory
from lightwork.agents.aios.storage import Storage
from lightwork.agents.tool import Tool, ToolEffect

TEXT = {"type": "string"}
NUMBER = {"type": "integer"}


def memory_tools(memory: Memory, agent: str) -> list[Tool]:
    """remember, recall."""

    def remember(text: str) -> str:
        return memory.add(agent, text.encode())

    def recall(item: str, owner: str = agent) -> str:
        return memory.get(owner, item).decode()

    return [
        _tool(remember, "Keep a text in mind; returns the name to recall it by.", "write", text=TEXT),
        _tool(recall, "A text that was kept in mind.", item=TEXT, owner=TEXT),
    ]


def storage_tools(storage: Storage, agent: str) -> list[Tool]:
    """write_file, read_file, list_files, search_files, roll_back_file, delete_file."""

    def write_file(name: str, text: str) -> int:
        return storage.write(agent, name, text.encode())

    def read_file(name: str, version: int = 0, owner: str = agent) -> str:
        return storage.read(owner, name, version).decode("utf-8", "replace")

    def list_files(owner: str = agent) -> dict[str, list[int]]:
        return {name: storage.versions(owner, name) for name in storage.names(owner)}

    def search_files(words: str, most: int = 5, owner: str = agent) -> list[str]:
        return [name for name, _ in storage.search(owner, words, most)]

    def roll_back_file(name: str, version: int) -> int:
        return storage.roll_back(agent, name, version)

    def delete_file(name: str) -> None:
        storage.delete(agent, name)

    return [
        _tool(write_file, "Write a file; returns its new version.", "write", name=TEXT, text=TEXT),
        _tool(read_file, "A file's text, of its latest version.", name=TEXT, version=NUMBER, owner=TEXT),
        _tool(list_files, "Names of files, each with its versions.", owner=TEXT),
        _tool(
            search_files, "Names of files whose texts fit some words.", words=TEXT, most=NUMBER, owner=TEXT
        ),
        _tool(roll_back_file, "Make an old version the latest again.", "write", name=TEXT, version=NUMBER),
        _tool(delete_file, "Delete a file with all of its versions.", "irreversible", name=TEXT),
    ]


def _tool(fn: Callable[..., Any], description: str, effect: ToolEffect = "read", **parameters: Any) -> Tool:
    optional = len(fn.__defaults__ or ())
    names = [*parameters]
    schema = {
        "type": "object",
        "properties": parameters,
        "required": names[: len(names) - optional],
    }
    return Tool(name=fn.__name__, description=description, parameters=schema, fn=fn, effect=effect)
