"""Worlds: endless, seeded episodes that a model of a few million parameters can honestly learn.

A world draws an episode from a random stream. Its held-out split shares no surface string that matters (tool
names) with its training split, so a score on it is a score on things never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

__all__ = ["Episode", "Split", "Verdict", "World"]

Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """exact: the text is the gold text. answered: carried out, it gives the right answer. why: what is wrong,
    or "".
    """

    exact: bool
    answered: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """prompt: what the user says. question: that alone, without the tools. tools: name to description. gold:
    the text expected. check: judges any text. call: carries out a tool, by name and arguments; it may raise
    UsageError.
    """

    prompt: str
    question: str
    tools: Mapping[str, str]
    gold: str
    check: Callable[[str], Verdict]
    call: Callable[[str, Sequence[Any]], Any]


class World(Protocol):
    """A source of episodes; level says how hard."""

    def sample(self, rng: Random, level: int) -> Episode: ...
