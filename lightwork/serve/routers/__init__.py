"""The kind that divides work among engines: where a request begins, and where its decoding goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lightwork.serve.sequence import Sequence as Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One engine of a deployment: its tensor-parallel ranks and pipeline stages. None: as the plan says.

    hands_over: its sequences may go on elsewhere after their first token.
    """

    tp: int | None = None
    pp: int | None = None
    hands_over: bool = False


@dataclass(slots=True)
class Member:
    """An engine as its router sees it.

    requests: that are with it. tokens: their prompts, and as many as they may generate. alive: False while
    its process is lost, unless all are and it will return; nothing may go there.
    """

    requests: int = 0
    tokens: int = 0
    alive: bool = True


S = TypeVar("S")


class Router(Protocol[S]):
    """Which engine takes what. Synchronous, deterministic, without side effects but on the state."""

    def seats(self) -> list[Seat]:
        """The engines it divides work among."""
        ...

    def init(self) -> S: ...

    def place(self, state: S, seq: Seq, members: Sequence[Member]) -> int:
        """The engine that a sequence begins with, by number. At least one is alive.

        A sequence whose engine was lost has output already: it is computed again where it is placed now.
        """
        ...

    def next(self, state: S, seq: Seq, at: int, members: Sequence[Member]) -> int:
        """The engine that goes on after the first token; `at` to stay. Keys and values move with it."""
        ...
