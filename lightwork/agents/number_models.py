"""The models that players of the number game ask, as a game file names them, and what a simulated one says.

players: hf:./llama-3-8b                            # the engine in this process, or each host's own
players: {model: llama, on: http://localhost:8000/v1}     # any OpenAI-compatible server
players: {model: shape:llama-3-8b, on: sim:a100}    # an engine in virtual time, for `--place sim:N`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from lightwork.agents.chat_model import ChatModel, ChatRequest
from lightwork.agents.number_players import HIGHEST, Rule, Said, decimal, only_number
from lightwork.errors import SpecError
from lightwork.runtime.kernel import Kernel

THOUGHT = (
    "Everybody else will name a number too, and what wins is {ratio} of their mean. The last one that I know "
    "of is {mean}. I expect the others to think {level} steps ahead, so I answer {number}"
)
_LEVEL = re.compile(r"\blevel: (\S+)")
_WON = re.compile(r"(?:([\d.]+) won|first round) at (\d+(?:/\d+)?)\s*$")


class SharedModel(ChatModel, Protocol):
    """One that many players ask, until their game is over."""

    def close(self) -> None:
        """End it; replies that are not whole fail."""
        ...


@dataclass(frozen=True, slots=True)
class ModelAt:
    """Makes a model where it is asked. on: where an engine runs, or the address of a server that has one."""

    model: str
    on: str = "cpu"

    @classmethod
    def of(cls, said: Any) -> ModelAt:
        """Of a name, or of {model, on}. Raises SpecError."""
        parts = {"model": said} if isinstance(said, str) else said
        if (
            not isinstance(parts, Mapping)
            or not {"model"} <= set(parts) <= {"model", "on"}
            or not all(isinstance(part, str) and part for part in parts.values())
        ):
            raise SpecError(f"a player's model is {said!r:.60}", expected="levels, a model, or {model, on}")
        return cls(**parts)

    def __call__(self, kernel: Kernel) -> SharedModel:
        if self.on.startswith(("http://", "https://")):
            from lightwork.agents.http_model import HttpModel

            return HttpModel(kernel, self.on, self.model)
        from lightwork.agents.engine_model import open_model
        from lightwork.serve.plan import Plan

        plan = Plan(model=self.model, on=self.on)
        return open_model(plan, kernel, level_policy if self.on.startswith("sim:") else None)


def level_policy(request: ChatRequest, said: str) -> str:
    """What a model would say that plays at the level of its persona: a thought and a number, or the number
    of a thought. A first round is to it as if 50 had been the mean, so that it says the same each time."""
    asked = request.messages[-1].content
    won = _WON.search(asked)
    if won is None:
        thought = asked.rpartition("\n")[2]
        return thought.rpartition(" ")[2]
    level = _LEVEL.search(request.messages[0].content)
    ratio = Fraction(won[2])
    winning = only_number(won[1]) if won[1] else None
    if winning is None:
        winning = round(HIGHEST // 2 * ratio)
    rule = Rule.of(level[1] if level else 1, 0)
    number = rule.answer(Said(0, ratio, winning), 0)
    return THOUGHT.format(
        ratio=ratio,
        mean=decimal(round(winning / ratio), 1),
        level=f"{rule.level:g}",
        number=decimal(number, 1),
    )
