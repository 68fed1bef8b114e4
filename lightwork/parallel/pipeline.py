"""A pipeline whose stages do not wait for their messages to be carried: each receives, computes and sends at
once.

Paper:  "EnergonAI: An Inference System for 10-100 Billion Parameter Transformer Models", 2022
Idea:   every stage has a queue before it and one behind it, each served by itself, so that it computes one
        batch while the last travels on and the next arrives; all stages take batches in one order, so what
        they keep of them (keys and values) is always of the same age
Shapes: a ring of n: positions 0 to n - 2 are stages, n - 1 is the controller, which sends each batch to
        stage 0 and gets its result from stage n - 2; None ends all
Cost:   a batch per max(compute, link) seconds instead of compute + link, once 2(n - 1) - 1 are on their way
Claims: energonai
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from lightwork.runtime.effects import Compute, Recv, Send, Signal, Sleep, Spawn, Wait


async def stage(
    me: int, n: int, compute: Callable[[Any], Compute], *, room: int = 1, delay_s: float = 0.0
) -> None:
    """Stage `me`. compute: what turns a batch that came into the one that goes on.

    room: batches that may wait behind the stage; 0: none, so it sends one before it computes the next, as
    engines do whose sends block. delay_s: how much longer the link to the next is busy with a batch.
    """
    inbox: deque[Any] = deque()
    outbox: deque[Any] = deque()
    await Spawn(_receive(me, (me - 1) % n, inbox), "receive")
    await Spawn(_send(me, (me + 1) % n, outbox, delay_s), "send")
    for i in count(1):
        await Wait(f"{me} received", i)
        batch = inbox.popleft()
        await Signal(f"{me} taken")
        outbox.append(None if batch is None else await compute(batch))
        await Signal(f"{me} computed")
        await Wait(f"{me} sent", i if batch is None else i - room)
        if batch is None:
            return


async def controller(me: int, n: int, batches: Sequence[Any], *, in_flight: int) -> list[Any]:
    """Position n - 1: sends batches, so many at once, and returns what comes back, in order."""
    results: list[Any] = []
    for i, batch in enumerate(batches):
        if i >= in_flight:
            results.append(await Recv(me - 1))
        await Send(0, batch)
    while len(results) < len(batches):
        results.append(await Recv(me - 1))
    await Send(0, None)
    await Recv(me - 1)
    return results


async def _receive(me: int, before: int, inbox: deque[Any]) -> None:
    """One batch waits before the stage."""
    for i in count(1):
        batch = await Recv(before)
        inbox.append(batch)
        await Signal(f"{me} received")
        if batch is None:
            return
        await Wait(f"{me} taken", i)


async def _send(me: int, after: int, outbox: deque[Any], delay_s: float) -> None:
    for i in count(1):
        await Wait(f"{me} computed", i)
        batch = outbox.popleft()
        if delay_s and batch is not None:
            await Sleep(delay_s)
        await Send(after, batch)
        await Signal(f"{me} sent")
        if batch is None:
            return
