"""The kind that divides work among engines: where a request begins, and where its decoding goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lightwork.serve.sequence import Sequence as Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One engine of a deployment: its tensor-parallel ranks and pipeline stages. None: as the plan says."""

    tp: int | None = None
    pp: int | None = None


@dataclass(slots=True)
class Member:
    """An engine as its router sees it.

    requests: that are with it. tokens: their prompts, and as many as they may generate.
    """

    requests: int = 0
    tokens: int = 0


S = TypeVar("S")


class Router(Protocol[S]):
    """Which engine takes what. Synchronous, deterministic, without side effects but on the state."""

    def seats(self) -> list[Seat]:
        """The engines it divides work among."""
        ...

    def init(self) -> S: ...

    def place(self, state: S, seq: Seq, members: Sequence[Member]) -> int:
        """The engine that a new sequence begins with, by number."""
        ...

    def next(self, state: S, seq: Seq, at: int, members: Sequence[Member]) -> int:
        """The engine that goes on after the first token; `at` to stay. Keys and values move with it."""
        ...
