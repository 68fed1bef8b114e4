"""The kind of technique that decides which of many items stay in a memory that does not hold all.

An item is a name: an expert of a composition, an expert of a layer, a layer. `memory.residents` keeps the
count of bytes and asks; whoever moves the bytes is told what to copy where.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

S = TypeVar("S")


class Residency(Protocol[S]):
    """Who stays. Synchronous, deterministic, without side effects but on the state."""

    def init(self) -> S: ...

    def use(self, state: S, name: str) -> Sequence[str]:
        """An item is needed now. Returns what should be fetched ahead, soonest first, as far as this policy
        knows."""
        ...

    def victim(self, state: S, among: Collection[str]) -> str:
        """Which of these gives its place to another; there is at least one."""
        ...
