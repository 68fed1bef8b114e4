"""Pipelines whose sends block and do not: on simulated stages of GPT-3's layers, and on two processes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from statistics import median
from typing import Any

import numpy as np

from lightwork.claims._pooling import GPT3, layers
from lightwork.cluster import CostModel, parse_place
from lightwork.kernels.rows import Rows
from lightwork.models.work import forward_work
from lightwork.parallel.pipeline import controller
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Compute, Recv, Send
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.simulated import SimWorld
from lightwork.serve.opening import own_cores
from lightwork.serve.workers import Allocate, Command, Forward, Link, Workers, start_workers

LAYERS = 24
STAGES, NUM_BATCHES = 4, 64
READY = 1
"""The tag of a message that says that a stage takes what comes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What travels: hidden states in float16."""

    lengths: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return 2 * sum(self.lengths) * GPT3.hidden_size


async def blocking(me: int, n: int, compute: Callable[[Any], Compute]) -> None:
    """A stage of the baseline: it and the next one meet for each batch."""
    before, after = (me - 1) % n, (me + 1) % n
    batch: Batch | None = Batch(())
    while batch is not None:
        await Send(before, None, tag=READY)
        batch = await Recv(before)
        result = None if batch is None else await compute(batch)
        if after < n - 1:
            await Recv(after, tag=READY)
        await Send(after, result)


def pipeline_s(place: str, batches: Sequence[Batch], make: Callable[..., Coroutine[Any, Any, None]]) -> float:
    kernel, costs = Kernel(), CostModel(parse_place(place))
    world = SimWorld(kernel, costs.price, costs.resources())
    spec = layers(LAYERS // STAGES)

    def compute(batch: Batch) -> Compute:
        work = forward_work(spec, [(0, n) for n in batch.lengths], 0, dtype="float16")
        return Compute(work, None, (batch,))

    for me in range(STAGES):
        world.launch(me, make(me, STAGES + 1, compute))
    world.launch(STAGES, controller(STAGES, STAGES + 1, batches, in_flight=2 * STAGES))
    world.run()
    return kernel.now()


DELAY_S = 0.02
ROWS, ROUNDS, PER_ROUND, IN_FLIGHT = 640, 7, 10, 4


def period_s(workers: Workers, num: int) -> float:
    """Seconds per step while several are on their way. The first ones, which fill the pipeline, do not
    count."""
    rows = Rows.of_text(np.zeros(ROWS, np.int64), 16)
    rows.scored = rows.scored[:0]
    done: SimpleQueue[Exception | None] = SimpleQueue()

    def ask(command: Command) -> None:
        workers.ask(command, lambda parts, error: done.put(error))

    ask(Allocate(ROWS // 16, 16, 0))
    clock, began_s = WallClock(), 0.0
    for i in range(num + 2 * IN_FLIGHT):
        if i >= IN_FLIGHT and (error := done.get()) is not None:
            raise error
        if i == 2 * IN_FLIGHT:
            began_s = clock.now()
        ask(Forward(rows, ()))
    for _ in range(IN_FLIGHT + 1):
        done.get()
    return (clock.now() - began_s) / (num + IN_FLIGHT)


@cache
def periods() -> tuple[float, ...]:
    """Of two stages: without a delay, with one, and with one while sends block. Measured in turns."""
    links = (Link(), Link(delay_s=DELAY_S), Link(delay_s=DELAY_S, room=0))
    with ExitStack() as stack:
        pairs = [
            stack.enter_context(
                closing(start_workers("tiny:llama", tp=1, pp=2, cores=own_cores(), link=link))
            )
            for link in links
        ]
        rounds = [[period_s(workers, PER_ROUND) for workers in pairs] for _ in range(ROUNDS)]
    return tuple(median(each) for each in zip(*rounds, strict=True))
