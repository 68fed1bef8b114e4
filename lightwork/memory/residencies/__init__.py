"""The kind of technique that decides which of many items stay in a memory that does not hold all.

An item is a name: an expert of a composition, an expert of a layer, a layer. `memory.residents` keeps the
count of bytes and asks; whoever moves the bytes is told what to copy where.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Room for a model whose weights pass through it. slots: items that are there at once. layers: whether
    an item is a layer; else attention and MLP of each are items of their own."""

    slots: int
    layers: bool


class Residency(Protocol[S]):
    """Who stays. Synchronous, deterministic, without side effects but on the state."""

    @property
    def ring(self) -> Ring | None:
        """What it wants to stream one model's weights; None if it keeps as much as there is room for."""
        ...

    def init(self, order: Sequence[str]) -> S:
        """order: of uses, over and over, if that is known: of layers, not of experts."""
        ...

    def use(self, state: S, name: str) -> Sequence[str]:
        """An item is needed now. Returns what should be fetched ahead, soonest first, as far as this policy
        knows."""
        ...

    def victim(self, state: S, among: Collection[str]) -> str:
        """Which of these gives its place to another; there is at least one."""
        ...
