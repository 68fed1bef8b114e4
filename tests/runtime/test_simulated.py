"""Simulated ranks: closed forms reproduced exactly, and errors that name ranks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lightwork.errors import DeadlockError, RangeError, SpecError
from lightwork.parallel.all_reduces.ring import ring_all_reduce
from lightwork.runtime import (
    Collective,
    Compute,
    Effect,
    Fair,
    Fifo,
    Kernel,
    Meta,
    Move,
    Price,
    Recv,
    Send,
    Signal,
    SimWorld,
    Trace,
    Wait,
)

BYTES_PER_S, LATENCY_S = 25e9, 3e-6


def links(effect: Effect, rank: int) -> Price:
    """One link out of each rank; computing is free."""
    if isinstance(effect, Send):
        return Price((((f"out:{rank}",), effect.x.nbytes / BYTES_PER_S),), LATENCY_S)
    return Price()


def ring_world(n: int, *, execute: bool = False, trace: Trace | None = None) -> SimWorld:
    resources = {f"out:{r}": Fifo(f"out:{r}") for r in range(n)}
    return SimWorld(Kernel(trace=trace), links, resources, execute=execute)


@pytest.mark.parametrize("n", [2, 4, 8, 64, pytest.param(512, marks=pytest.mark.slow)])
def test_a_ring_all_reduce_takes_the_time_of_its_closed_form(n):
    world = ring_world(n)
    chunk = Meta((1000,), "float32")
    for r in range(n):
        world.launch(r, ring_all_reduce(r, n, [chunk] * n))
    world.run()
    expected_s = 2 * (n - 1) * (n * chunk.nbytes / (n * BYTES_PER_S) + LATENCY_S)
    assert world.kernel.now() == pytest.approx(expected_s, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_same_file_sums_values(n):
    rng = np.random.default_rng(0)
    given = rng.integers(0, 100, (n, n, 5))
    ranks = [[*given[r].copy()] for r in range(n)]
    world = ring_world(n, execute=True)
    for r in range(n):
        world.launch(r, ring_all_reduce(r, n, ranks[r]))
    world.run()
    for r in range(n):
        assert (np.stack(ranks[r]) == given.sum(axis=0)).all()


async def one_forward_one_backward(stage: int, p: int, m: int, act: Meta) -> None:
    """The 1F1B pipeline schedule of m microbatches over p stages (PipeDream-Flush)."""

    async def forward() -> None:
        if stage > 0:
            await Recv(stage - 1, tag=0)
        await Compute((), name="F")
        if stage < p - 1:
            await Send(stage + 1, act, tag=0)

    async def backward() -> None:
        if stage < p - 1:
            await Recv(stage + 1, tag=1)
        await Compute((), name="B")
        if stage > 0:
            await Send(stage - 1, act, tag=1)

    warm_up = min(p - 1 - stage, m)
    for _ in range(warm_up):
        await forward()
    for _ in range(m - warm_up):
        await forward()
        await backward()
    for _ in range(warm_up):
        await backward()


@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 2), (4, 4), (4, 8), (8, 32), (4, 2)])
def test_the_bubble_of_1f1b_is_its_closed_form(p, m):
    forward_s, backward_s = 1.0, 2.0

    def price(effect: Effect, rank: int) -> Price:
        if isinstance(effect, Compute):
            return Price((((f"gpu:{rank}",), forward_s if effect.name == "F" else backward_s),))
        return Price()

    gpus = {f"gpu:{r}": Fifo(f"gpu:{r}") for r in range(p)}
    world = SimWorld(Kernel(), price, gpus)
    for r in range(p):
        world.launch(r, one_forward_one_backward(r, p, m, Meta((1,))))
    world.run()
    busy_s = m * (forward_s + backward_s)
    assert all(gpu.busy_s == busy_s for gpu in gpus.values())
    bubble = 1 - Fraction(busy_s) / Fraction(world.kernel.now())
    assert bubble == Fraction(p - 1, m + p - 1)


def test_messages_of_one_sender_and_tag_come_in_order():
    latencies = iter([5.0, 1.0, 1.0])

    def price(effect: Effect, rank: int) -> Price:
        return Price((), next(latencies)) if isinstance(effect, Send) else Price()

    async def sender():
        for size in (1, 2, 3):
            await Send(1, Meta((size,), "int8"), tag=7 if size == 3 else 0)

    async def receiver():
        got = [await Recv(0, tag=7), await Recv(0), await Recv(0)]
        return [x.nbytes for x in got]

    world = SimWorld(Kernel(), price, {})
    world.launch(0, sender())
    world.launch(1, receiver())
    assert world.run()[1] == [3, 1, 2]


def test_a_message_is_what_it_was_when_it_was_sent():
    async def sender():
        x = np.ones(3)
        await Send(1, x)
        x[:] = 0

    async def receiver():
        return (await Recv(0, like=np.zeros(3))).tolist()

    world = SimWorld(Kernel(), lambda e, r: Price(), {})
    world.launch(0, sender())
    world.launch(1, receiver())
    assert world.run()[1] == [1, 1, 1]


def test_a_path_of_fair_resources_shares_its_narrowest():
    def price(effect: Effect, rank: int) -> Price:
        if isinstance(effect, Send):
            return Price((((f"out:{rank}", f"in:{effect.to}"), effect.x.nbytes),), 0.5)
        return Price()

    async def sender(r):
        await Send(2, Meta((8,), "int8"))

    async def receiver():
        await Recv(0)
        await Recv(1)

    fairs = {name: Fair(name, 4.0) for name in ("out:0", "out:1", "in:2")}
    world = SimWorld(Kernel(), price, fairs)
    for r in range(2):
        world.launch(r, sender(r))
    world.launch(2, receiver())
    world.run()
    assert world.kernel.now() == 16 / 4.0 + 0.5  # both flows get half of in:2


def test_demands_are_served_side_by_side_then_comes_the_latency():
    price = Price(((("gpu",), 2.0), (("memory",), 30.0)), 0.25)
    world = SimWorld(Kernel(), lambda e, r: price, {"gpu": Fifo("gpu"), "memory": Fair("memory", 10.0)})

    async def strategy():
        return await Move(Meta((4,)), "host", "device")

    world.launch(0, strategy())
    assert world.run() == [Meta((4,))]
    assert world.kernel.now() == 3.25


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("all_reduce", lambda r: np.array([r + 1]), [[3], [3]]),
        ("broadcast", lambda r: np.array([r + 1]), [[1], [1]]),
        ("all_gather", lambda r: np.array([r]), [[[0], [1]], [[0], [1]]]),
        ("reduce_scatter", lambda r: [np.array([r]), np.array([10 * r])], [[1], [10]]),
        ("all_to_all", lambda r: [np.array([r]), np.array([10 + r])], [[[0], [1]], [[10], [11]]]),
        ("barrier", lambda r: None, [None, None]),
    ],
)
def test_collectives_start_with_the_last_member(kind, given, expected):
    def price(effect: Effect, rank: int) -> Price:
        return Price((), 2.0 if isinstance(effect, Collective) else float(rank))

    async def strategy(r):
        await Compute(())
        result = await Collective(kind, (0, 1), given(r))
        return np.array(result).tolist() if result is not None else None

    world = SimWorld(Kernel(), price, {})
    for r in range(2):
        world.launch(r, strategy(r))
    assert world.run() == expected
    assert world.kernel.now() == 1.0 + 2.0


def test_a_member_that_never_comes_is_named():
    async def enters():
        await Collective("all_reduce", (0, 1, 2, 3), Meta((1,)))

    world = SimWorld(Kernel(), lambda e, r: Price(), {})
    for r in (0, 2):
        world.launch(r, enters())
    with pytest.raises(DeadlockError, match=r"all_reduce of ranks 0, 1, 2, 3: missing ranks 1, 3"):
        world.run()


def test_collectives_that_differ_are_refused():
    async def strategy(kind):
        await Collective(kind, (0, 1), Meta((1,)))

    world = SimWorld(Kernel(), lambda e, r: Price(), {})
    world.launch(0, strategy("all_reduce"))
    world.launch(1, strategy("all_gather"))
    with pytest.raises(DeadlockError, match="rank 1 enters all_gather, but rank 0 entered all_reduce"):
        world.run()


def test_ranks_that_wait_for_each_other_are_named():
    async def strategy(r):
        await Recv(1 - r, tag=3)

    world = SimWorld(Kernel(), lambda e, r: Price(), {})
    for r in range(2):
        world.launch(r, strategy(r))
    with pytest.raises(DeadlockError, match="rank 0 waits for a message of rank 1, tag 3"):
        world.run()


def test_a_message_of_the_wrong_size_is_refused():
    async def sender():
        await Send(1, Meta((3,), "int8"))

    async def receiver():
        await Recv(0, like=Meta((4,), "int8"))

    world = SimWorld(Kernel(), lambda e, r: Price(), {})
    world.launch(0, sender())
    world.launch(1, receiver())
    with pytest.raises(RangeError, match="rank 1 received 3 bytes from rank 0"):
        world.run()


def test_an_unknown_resource_is_named():
    world = SimWorld(Kernel(), lambda e, r: Price(((("gpuu",), 1.0),)), {"gpu": Fifo("gpu")})

    async def strategy():
        await Compute(())

    world.launch(0, strategy())
    with pytest.raises(SpecError, match="gpuu"):
        world.run()


def test_counters_belong_to_a_world():
    kernel = Kernel()
    here, there = (SimWorld(kernel, lambda e, r: Price(), {}) for _ in range(2))

    async def signals():
        await Signal("ready")

    async def waits():
        await Wait("ready")

    there.launch(0, signals())
    here.launch(0, waits())
    with pytest.raises(DeadlockError, match="ready"):
        here.run()
    assert there.tasks[0].done


def test_the_same_seed_gives_the_same_trace():
    def simulate(seed: int) -> str:
        world = ring_world(4, trace=Trace("simulated"))
        world.kernel.seed = seed
        jitter = world.kernel.rng("jitter")

        def price(effect: Effect, rank: int) -> Price:
            return Price((), jitter.exponential() if isinstance(effect, Compute) else 0.0)

        world.price = price
        for r in range(4):
            world.launch(r, ring_all_reduce(r, 4, [Meta((8,))] * 4))
        world.run()
        assert world.kernel.trace is not None
        return world.kernel.trace.hash()

    assert simulate(1) == simulate(1)
    assert simulate(1) != simulate(2)
