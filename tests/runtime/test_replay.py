"""A recorded graph, timed by compiled loops, against the event simulation: equal to the last bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwork.errors import DeadlockError, SpecError
from lightwork.parallel.all_reduces.ring import ring_all_reduce
from lightwork.runtime import (
    Collective,
    Compute,
    Effect,
    Fifo,
    Kernel,
    Meta,
    Move,
    Price,
    Recv,
    Send,
    SimWorld,
    Sleep,
    Spawn,
)
from lightwork.runtime.record import record
from lightwork.runtime.replay import replay

pytest.importorskip("numba")

SHARED = ("a", "b")


def ring_price(effect: Effect, rank: int) -> Price:
    if isinstance(effect, Send):
        return Price((((f"out:{rank}",), effect.x.nbytes / 25e9),), 3e-6)
    return Price((((f"gpu:{rank}",), 1e-7),)) if isinstance(effect, Compute) else Price()


@pytest.mark.parametrize("order", ["issue", "ready"])
@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_ring_takes_the_same_time(n, order):
    def programs():
        return {r: ring_all_reduce(r, n, [Meta((1000 + r,)) for r in range(n)]) for r in range(n)}

    names = [f"{kind}:{r}" for kind in ("out", "gpu") for r in range(n)]
    world = SimWorld(Kernel(), ring_price, {name: Fifo(name) for name in names})
    for r, program in programs().items():
        world.launch(r, program)
    world.run()
    assert replay(record(programs(), ring_price), order).makespan_s == world.kernel.now()


def random_program(rank: int, ranks: int, seed: int):
    """Computations, messages round a ring, collectives; pauses of each rank's own leave no ties."""
    plan, own = random.Random(seed), random.Random(f"{seed} {rank}")

    async def program():
        for step in range(12):
            await Sleep(own.random())
            kind = plan.choice(["compute", "move", "ring", "collective"])
            if kind == "compute":
                await Compute((), name=f"{step}")
            elif kind == "move":
                await Move(Meta((step,)), "host", "device")
            elif kind == "ring":
                await Send((rank + 1) % ranks, Meta((step + 1,)))
                await Recv((rank - 1) % ranks)
            else:
                await Collective("all_reduce", tuple(range(ranks)), Meta((step,)))

    return program()


def pricing(seed: int):
    """Prices that depend on who asks for the how-manieth time: the same in both worlds."""
    asked: dict[int, int] = {}

    def price(effect: Effect, rank: int) -> Price:
        asked[rank] = asked.get(rank, 0) + 1
        dice = random.Random(f"{seed} {rank} {asked[rank]}")
        demands = tuple(((name,), dice.random()) for name in dice.sample(SHARED, dice.randint(0, 2)))
        return Price(demands, dice.choice([0.0, dice.random()]))

    return price


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), ranks=st.integers(1, 5))
def test_readiness_order_equals_the_event_simulation(seed, ranks):
    world = SimWorld(Kernel(), pricing(seed), {name: Fifo(name) for name in SHARED})
    for r in range(ranks):
        world.launch(r, random_program(r, ranks, seed))
    world.run()
    times = replay(record({r: random_program(r, ranks, seed) for r in range(ranks)}, pricing(seed)))
    assert times.makespan_s == world.kernel.now()


def test_other_amounts_on_one_recording():
    async def program():
        await Compute(())
        await Compute(())

    graph = record({0: program()}, lambda e, r: Price(((("gpu",), 1.0),)))
    assert replay(graph).makespan_s == 2.0
    times = replay(graph, "issue", amount_s=np.array([3.0, 4.0]))
    assert times.begin_s.tolist() == [0.0, 3.0]
    assert times.done_s.tolist() == [3.0, 7.0]


def test_ranks_that_wait_for_each_other_are_named():
    async def waits(r):
        await Recv(1 - r)

    with pytest.raises(DeadlockError, match="rank 0 in Recv"):
        record({r: waits(r) for r in range(2)}, lambda e, r: Price())


def test_what_is_not_known_beforehand_is_refused():
    async def child():
        pass

    async def spawns():
        coro = child()
        try:
            await Spawn(coro)
        finally:
            coro.close()

    program = spawns()
    with pytest.raises(SpecError, match="not known beforehand"):
        record({0: program}, lambda e, r: Price())
    program.close()
    with pytest.raises(SpecError, match="out/in"):
        record({0: ring_all_reduce(0, 2, [Meta((1,))] * 2)}, lambda e, r: Price(((("out", "in"), 1.0),)))
