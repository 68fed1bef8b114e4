"""Agent programs: how a model, tools and a question become an answer.

The one interface is `Program.run(context, question)`: a coroutine on the runtime's kernel. It awaits replies,
observations and effects only, so it runs for real and in virtual time. A program spends its context's budget,
and what goes wrong in a tool is an observation to it. To add one: a file beside this with a dataclass named
after it.
"""

from __future__ import annotations

from typing import Protocol

from lightwork.agents.context import Context, Result

__all__ = ["Program"]


class Program(Protocol):
    """From a question to a Result."""

    async def run(self, context: Context, question: str) -> Result:
        """Raises what its model fails with (a lost connection, a refused request); nothing of its tools."""
        ...
