"""The tools of an episode of a world, as programs call them."""

from __future__ import annotations

from typing import Any

from lightwork.agents.tool import Tool
from lightwork.agents.worlds import Episode

ARGUMENTS = ("a", "b")


def world_tools(episode: Episode, *, cost_s: float = 0.0) -> list[Tool]:
    """cost_s: what a call takes on a virtual clock."""
    return [_tool(episode, name, cost_s) for name in episode.tools]


def _tool(episode: Episode, name: str, cost_s: float) -> Tool:
    def call(**given: Any) -> Any:
        return episode.call(name, [given[key] for key in ARGUMENTS if key in given])

    return Tool(
        name=name,
        description=episode.tools[name],
        parameters={
            "type": "object",
            "properties": {key: {"type": ["string", "integer"]} for key in ARGUMENTS},
        },
        fn=call,
        effect="pure",
        cost_s=cost_s,
        inline=cost_s == 0,
    )
