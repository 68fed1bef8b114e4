"""Places that are given in turns: a queue with a policy, for whatever only so many can have at once.

    queue = Queue(kernel, "printer", 1, RoundRobin(quantum=2))
    turn = queue.turn()
    await queue.take(turn)              # a place, at once if one is free
    try:
        while work():
            turn.tokens += 1
            if queue.over(turn):        # somebody waits, and the policy says it is his turn
                await queue.again(turn)
    finally:
        queue.leave(turn)

Nothing is polled and nothing is batched: a place goes to the next in the moment in which it is left.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

from lightwork.errors import InvariantError, RangeError
from lightwork.runtime.futures import CancelledError, Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.queue_policies import QueuePolicy, Turn
from lightwork.runtime.queue_policies.first_come_first_served import FirstComeFirstServed

Waiting = tuple[tuple[int, int], int, Turn, Future]


class Queue:
    """places: that can be had at once. running: who has one, and since when, in seconds on the kernel's
    clock. Raises RangeError for less than one place."""

    def __init__(self, kernel: Kernel, name: str, places: int = 1, policy: QueuePolicy | None = None) -> None:
        if places < 1:
            raise RangeError(f"{name!r} has {places} places", expected="at least 1")
        self.kernel = kernel
        self.name = name
        self.places = places
        self.policy = policy or FirstComeFirstServed()
        self.running: dict[Turn, float] = {}
        self._waiting: list[Waiting] = []
        self._numbers = count()
        self._joins = count()

    def turn(self, priority: int = 0) -> Turn:
        """Somebody who comes now, and has no place yet."""
        return Turn(next(self._numbers), next(self._joins), priority)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(not bell.done for _, _, _, bell in self._waiting)

    async def take(self, turn: Turn) -> None:
        """Return once the turn has a place. Who is cancelled meanwhile has none."""
        if len(self.running) < self.places and self._first() is None:
            self._give(turn)
            return
        bell = self.kernel.future(f"a place at {self.name}")
        heappush(self._waiting, (self.policy.rank(turn), turn.joined, turn, bell))
        try:
            await bell
        except BaseException:
            if turn in self.running:
                self.leave(turn)
            elif not bell.done:
                bell.fail(CancelledError(bell.name))
            raise

    def over(self, turn: Turn) -> bool:
        """Whether this turn is to give up its place now: never while nobody waits."""
        if not self._waiting:
            return False
        first = self._first()
        if first is None:
            return False
        turn.seconds = self.kernel.now() - self.running[turn]
        return self.policy.over(turn, first)

    async def again(self, turn: Turn) -> None:
        """Give up the place to the next, join the queue, and return once there is one again."""
        self.leave(turn)
        turn.joined = next(self._joins)
        await self.take(turn)

    def leave(self, turn: Turn) -> None:
        """Give up the place for good. Raises InvariantError for who has none."""
        if self.running.pop(turn, None) is None:
            raise InvariantError(f"{turn} leaves {self.name!r}", expected="who has a place")
        if self._first() is not None:
            _, _, first, bell = heappop(self._waiting)
            self._give(first)
            bell.set()

    def _give(self, turn: Turn) -> None:
        turn.tokens, turn.seconds = 0, 0.0
        self.running[turn] = self.kernel.now()

    def _first(self) -> Turn | None:
        """Who is next, those left out who were cancelled."""
        waiting = self._waiting
        while waiting:
            if not waiting[0][3].done:
                return waiting[0][2]
            heappop(waiting)
        return None
