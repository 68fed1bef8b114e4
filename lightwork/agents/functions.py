"""Tools from Python functions: the schema from type hints and docstring, arguments and results checked.

    @tool
    def weather(city: str, days: int = 1) -> str:
        \"\"\"What the weather will be.

        city: its name in English.
        \"\"\"

    tools = load_tools("my_tools.py")

A call whose arguments do not fit, and a result that is not what the function declares, raise UsageError with
the reason, which Toolbox makes an observation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

from lightwork.agents.tool import Tool, ToolEffect


@overload
def tool(fn: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str = "",
    description: str = "",
    effect: ToolEffect = "read",
    limit: int = 0,
    deadline_s: float = 60.0,
    cost_s: float = 0.0,
    inline: bool = False,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(fn: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """A function as a Tool, or a decorator that makes one; settings: see `Tool`. It may be `async`.

    name, description: "" takes the function's own. Raises SpecError for a function that cannot be called by
    name or whose type hints mean nothing.
    """


def load_tools(path: Path | str) -> list[Tool]:
    """The tools in a file of Python: what is decorated with `tool`; if nothing is, every function in it with
    type hints whose name does not begin with _.

    Raises SpecError if there is none, or the file cannot be imported.
    """
