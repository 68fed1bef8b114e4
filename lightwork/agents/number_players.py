"""Who plays the number game: players of a level, by a rule, and players who ask a model.

Level k (Nagel, "Unraveling in guessing games", 1995): level 0 repeats the last mean, level 1 answers it with
what would win then, level 2 answers level 1, and so on; whoever thinks for ever says 0. So with r the
ratio, level k says r^k times the last mean. In the first round the mean is taken to be 50, and level 0 says
any number at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from typing import Any, Protocol

from lightwork.agents.chat_model import ChatModel, ChatRequest, Message
from lightwork.agents.personas import expand, template
from lightwork.errors import SpecError
from lightwork.runtime.effects import Acquire, Sleep
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Store

UNIT = 1_000_000
"""Numbers are whole millionths, so that a sum is the same in any order."""
HIGHEST = 100 * UNIT
RETRIES = 3
ANSWER_TOKENS, NUMBER_TOKENS = 256, 16
AT_ONCE = 1024
EXTRACT = "Write the final answer of this text as a number, and nothing else.\n\n"
_NUMBER = re.compile(r"(?<![\w.,-])\d{1,3}(?:\.\d{1,30})?(?![\w,-]|\.\d)")
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Said:
    """What players are told. winning: ratio times the mean of the round before, in millionths, or None."""

    round: int
    ratio: Fraction
    winning: int | None

    def text(self) -> str:
        """For a model."""
        if self.winning is None:
            return f"first round at {self.ratio}"
        return f"{decimal(self.winning, 1)} won at {self.ratio}"


class Player(Protocol):
    """One who answers."""

    async def answer(self, said: Said) -> int | None:
        """A number in millionths, 0 to HIGHEST; None if none could be had."""
        ...


@dataclass(frozen=True, slots=True)
class Rule:
    """How players of a level answer: shared by all of them. thinking: what an answer takes."""

    level: float
    seed: int
    thinking: Sleep = field(default_factory=lambda: Sleep(0.0))

    @classmethod
    def of(cls, level: Any, seed: int, thinks_s: float = 0.0) -> Rule:
        """level: 0, 1, 2, ... or "inf". Raises SpecError for another one."""
        try:
            number = float(level)
        except (TypeError, ValueError):
            number = -1.0
        if number < 0 or (number != inf and number % 1):
            raise SpecError(f"a player has the level {level!r}", expected='0, 1, 2, ... or "inf"')
        return cls(number, seed, Sleep(thinks_s))

    def answer(self, said: Said, player: int) -> int:
        ratio = float(said.ratio)
        if said.winning is not None:
            factor: float = ratio ** (self.level - 1)
            return min(HIGHEST, round(said.winning * factor))
        if self.level == 0:
            return draw(self.seed, player) % (HIGHEST + 1)
        factor = ratio**self.level
        return round(HIGHEST / 2 * factor)


class LevelPlayer:
    """Answers by its rule. There may be millions, so it holds nothing else."""

    __slots__ = ("index", "rule")

    def __init__(self, rule: Rule, index: int) -> None:
        self.rule = rule
        self.index = index

    def __getstate__(self) -> list[float]:
        rule = self.rule
        return [rule.level, rule.seed, rule.thinking.seconds, self.index]

    def __setstate__(self, state: list[Any]) -> None:
        level, seed, thinks_s, self.index = state
        self.rule = Rule.of(level, seed, thinks_s)

    async def answer(self, said: Said) -> int:
        rule = self.rule
        if rule.thinking.seconds:
            await rule.thinking
        return rule.answer(said, self.index)


@dataclass(frozen=True, slots=True)
class Asking:
    """How a model is asked: shared by its players in a group. rules: of the game, for models that do not know
    it. invent: let the model write a persona from the attributes, rather than list them. slots: of requests
    that are under way; engines and servers turn away what is too much for their queue.
    """

    kernel: Kernel
    model: ChatModel
    seed: int
    rules: str
    invent: bool = False
    slots: Store = field(default_factory=lambda: Store("requests", AT_ONCE))


class ModelPlayer:
    """Asks a model as somebody with these attributes.

    A reply that is more than a number is given to the model again, to say only the number. Asked once more,
    with another seed, up to RETRIES times, until there is one.
    """

    __slots__ = ("asking", "attributes", "index", "persona")

    def __init__(self, asking: Asking, index: int, attributes: Mapping[str, Any]) -> None:
        self.asking = asking
        self.index = index
        self.attributes = attributes
        self.persona = ""

    async def answer(self, said: Said) -> int | None:
        if not self.persona:
            self.persona = await self._persona()
        for tried in range(1 + RETRIES):
            key = draw(self.asking.seed, self.index, said.round, tried) >> 32
            text = await self._ask(f"{self.asking.rules}{said.text()}", ANSWER_TOKENS, key)
            number = only_number(text)
            if number is None and text.strip():
                number = only_number(await self._ask(EXTRACT + text, NUMBER_TOKENS, key))
            if number is not None:
                return number
        return None

    async def _persona(self) -> str:
        if self.asking.invent:
            seed = draw(self.asking.seed, self.index) >> 32
            await Acquire(self.asking.slots, 1)
            try:
                return (await expand(self.asking.model, self.attributes, seed=seed)).text
            finally:
                self.asking.slots.release(self.asking.kernel, 1)
        return template(self.attributes).text

    async def _ask(self, text: str, max_tokens: int, seed: int) -> str:
        messages = (Message("system", self.persona), Message("user", text))
        request = ChatRequest(messages, max_tokens=max_tokens, temperature=1.0, seed=seed)
        await Acquire(self.asking.slots, 1)
        try:
            return (await self.asking.model.stream(request).reply()).text
        finally:
            self.asking.slots.release(self.asking.kernel, 1)


def only_number(text: str) -> int | None:
    """The number, in millionths, of a text with one number from 0 to 100 in it and at most 40 other
    characters; else None."""
    found = _NUMBER.findall(text)
    if len(found) != 1 or len(text.strip()) > 40 + len(found[0]):
        return None
    number = round(Fraction(found[0]) * UNIT)
    return number if number <= HIGHEST else None


def decimal(number: int, places: int = 6) -> str:
    """Millionths as a decimal number with so many places, rounded half to even."""
    step: int = 10 ** (6 - places)
    whole = round(Fraction(number, step))
    return f"{whole // 10**places}.{whole % 10**places:0{places}d}" if places else str(whole)


def draw(*key: int) -> int:
    """64 random bits of a key: the same wherever and in whatever order it is asked for.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), over the key.
    """
    bits = 0
    for part in key:
        bits = (bits + part + 0x9E3779B97F4A7C15) & _MASK
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
        bits ^= bits >> 31
    return bits
