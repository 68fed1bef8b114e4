"""Strategies that the test's processes import."""

from __future__ import annotations

import os
import signal

import torch

from lightwork.parallel.all_reduces.direct import Direct
from lightwork.parallel.all_reduces.ring import Ring, ring_all_reduce
from lightwork.parallel.all_reduces.star import Star
from lightwork.runtime import Collective, Compute, Recv, Send, Sleep


def numbers(rank, n):
    return torch.arange(n * 6, dtype=torch.float64).reshape(n, 6) * (rank + 1)


async def ring_and_collective(me, n):
    """The sum over all ranks, once by the ring and once by the library."""
    chunks = [*numbers(me, n)]
    await ring_all_reduce(me, n, chunks)
    whole = await Collective("all_reduce", tuple(range(n)), numbers(me, n))
    return torch.stack(chunks).tolist(), whole.tolist()


async def every_all_reduce(me, n):
    return [(await way.sum(me, n, numbers(me, n))).tolist() for way in (Ring(), Star(), Direct())]


async def every_collective(me, n):
    group = tuple(range(n))
    x = torch.tensor([float(me)])
    got = {
        kind: await Collective(kind, group, [x + 10 * r for r in group] if listed else x)
        for kind, listed in [
            ("broadcast", False),
            ("all_gather", False),
            ("reduce_scatter", True),
            ("all_to_all", True),
        ]
    }
    await Collective("barrier", group)
    pair = (me // 2 * 2, me // 2 * 2 + 1)
    got["pair"] = await Collective("all_reduce", pair, x)
    return {k: [t.item() for t in v] if isinstance(v, list) else v.item() for k, v in got.items()}


async def ragged_collectives(me, n):
    """Rank r gives r + c rows to rank c, and r rows to all; every row says who gave it, and to whom."""
    parts = [torch.full((me + to, 2), 10.0 * me + to) for to in range(n)]
    group = tuple(range(n))
    got = await Collective("all_to_all", group, parts)
    gathered = await Collective("all_gather", group, torch.full((me,), float(me)))
    nothing = await Collective("all_to_all", group, [torch.zeros(0, 3)] * n)
    return [x.tolist() for x in got], [x.tolist() for x in gathered], [tuple(x.shape) for x in nothing]


async def buffered(me, n):
    """Messages are what they were when sent, in order, also to oneself."""
    x = torch.zeros(1000)
    for i in range(20):
        x.fill_(i)
        await Send(1 - me, x)
    await Send(me, x, tag=1)
    got = [(await Recv(1 - me, like=x)).mean().item() for _ in range(20)]
    return got, (await Recv(me, like=x, tag=1)).mean().item()


async def one_raises(me, n):
    if me == 1:
        await Compute((), _divide)
    await Recv(1, like=torch.zeros(1))


def _divide():
    return 1 // 0


async def one_is_killed(me, n):
    if me == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    await Recv(1, like=torch.zeros(1))


async def one_never_sends(me, n):
    if me == 0:
        await Recv(1, like=torch.zeros(1), tag=5)


async def sleeps(me, n):
    await Sleep(1.0)
