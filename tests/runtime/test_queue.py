"""Turns: who has a place when, under each policy, and whatever is cancelled in between."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import InvariantError, RangeError
from lightwork.runtime.futures import CancelledError
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.queue import Queue
from lightwork.runtime.queue_policies import QueuePolicy
from lightwork.runtime.queue_policies.first_come_first_served import FirstComeFirstServed
from lightwork.runtime.queue_policies.priority import Priority
from lightwork.runtime.queue_policies.round_robin import RoundRobin

POLICIES = [
    FirstComeFirstServed(),
    RoundRobin(quantum=1),
    RoundRobin(quantum=3),
    RoundRobin(quantum=2.5, unit="seconds"),
    Priority(),
    Priority(preempt=False),
]


def served(policy: QueuePolicy, calls: list[tuple[str, float, int, int]], places: int = 1) -> str:
    """The names of calls (name, arrival, tokens, priority), one letter for each second of service."""
    kernel = Kernel()
    queue, log = Queue(kernel, "model", places, policy), []

    async def call(name: str, at_s: float, tokens: int, priority: int) -> None:
        await kernel.sleep(at_s)
        turn = queue.turn(priority)
        await queue.take(turn)
        try:
            for left in reversed(range(tokens)):
                log.append(name)
                await kernel.sleep(1.0)
                turn.tokens += 1
                if left and queue.over(turn):
                    await queue.again(turn)
        finally:
            queue.leave(turn)

    async def main() -> None:
        await kernel.gather(*(kernel.spawn(call(*one)) for one in calls))

    kernel.run(main())
    assert not queue.running
    assert not queue.waiting
    return "".join(log)


LONG_AND_SHORT = [("a", 0.0, 6, 0), ("b", 0.5, 2, 0), ("c", 0.6, 1, 5)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (FirstComeFirstServed(), "aaaaaabbc"),
        (RoundRobin(quantum=1), "abcabaaaa"),
        (RoundRobin(quantum=2), "aabbcaaaa"),
        (RoundRobin(quantum=3.0, unit="seconds"), "aaabbcaaa"),
        (Priority(), "acaaaaabb"),
        (Priority(preempt=False), "aaaaaacbb"),
    ],
    ids=repr,
)
def test_who_is_served_when(policy: QueuePolicy, expected: str) -> None:
    assert served(policy, LONG_AND_SHORT) == expected


def test_who_is_alone_goes_on_without_a_pause() -> None:
    assert served(RoundRobin(quantum=1), [("a", 0.0, 5, 0)]) == "aaaaa"


@given(
    policy=st.sampled_from(POLICIES),
    places=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_places_are_never_exceeded_idle_or_lost(policy: QueuePolicy, places: int, seed: int) -> None:
    """Some callers are cancelled at any moment; the others all get what they want, and no place stays empty
    while somebody waits."""
    rng, kernel = random.Random(seed), Kernel()
    queue = Queue(kernel, "model", places, policy)
    done: list[int] = []

    async def call(number: int) -> None:
        await kernel.sleep(rng.randrange(6))
        turn = queue.turn(rng.randrange(3))
        await queue.take(turn)
        try:
            for _ in range(rng.randrange(1, 6)):
                assert turn in queue.running
                assert len(queue.running) <= places
                await kernel.sleep(rng.randrange(3))
                assert not queue.waiting or len(queue.running) == places
                turn.tokens += 1
                if queue.over(turn):
                    await queue.again(turn)
            done.append(number)
        finally:
            if turn in queue.running:
                queue.leave(turn)

    tasks = [kernel.spawn(call(i)) for i in range(12)]
    unlucky = set(rng.sample(range(12), 4))

    async def main() -> None:
        for i in unlucky:
            await kernel.sleep(rng.randrange(4))
            tasks[i].cancel()
        for task in tasks:
            with suppress(CancelledError):
                await task

    kernel.run(main())
    assert set(done) | unlucky == set(range(12))
    assert not queue.running
    assert not queue.waiting


def test_a_place_given_to_who_is_cancelled_in_that_moment_goes_on_to_the_next() -> None:
    kernel = Kernel()
    queue, got = Queue(kernel, "printer"), []

    async def wait(name: str) -> None:
        turn = queue.turn()
        await queue.take(turn)
        got.append(name)
        queue.leave(turn)

    async def main() -> None:
        first = queue.turn()
        await queue.take(first)
        a, b = kernel.spawn(wait("a")), kernel.spawn(wait("b"))
        await kernel.sleep(1.0)
        a.cancel()
        queue.leave(first)
        await b

    kernel.run(main())
    assert got == ["b"]


def test_what_no_queue_can_be_is_refused() -> None:
    kernel = Kernel()
    with pytest.raises(RangeError, match="0 places"):
        Queue(kernel, "nothing", 0)
    with pytest.raises(RangeError, match="quanta of 0"):
        RoundRobin(quantum=0)
    queue: Any = Queue(kernel, "model")
    with pytest.raises(InvariantError, match="leaves 'model'"):
        queue.leave(queue.turn())
