"""The entry of an actor that is busy or paused; how ids are numbered."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightwork.runtime.calls import Call

BITS = 8
"""Of an id: which place created it. The rest: how many that had created there before."""
MAX_PLACES = (1 << BITS) - 1
"""The last number is that of what a place has of its own."""


ABSENT = object()
"""Instead of an actor that is still to be created: who was given its Ref may be quicker than its creator."""


class Mailbox:
    """Of a busy, paused or absent actor. call: what it does now. waiting: what comes next."""

    __slots__ = ("actor", "call", "paused", "waiting")

    def __init__(self, actor: Any, call: Call | None) -> None:
        self.actor = actor
        self.call = call
        self.paused = False
        self.waiting: deque[Call] | None = None
