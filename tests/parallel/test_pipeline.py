"""A pipeline in which carrying and computing overlap: order, values, and time against the closed form."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest

from lightwork.parallel.pipeline import controller, stage
from lightwork.runtime import Compute, Effect, Fair, Fifo, Kernel, Price, Recv, Send, SimWorld, Trace
from lightwork.runtime.threads import ThreadWorld

COMPUTE_S, DELAY_S = 0.05, 0.02


def simulate(
    n: int,
    batches: list[Any],
    *,
    room: int,
    in_flight: int,
    delay_s: float = DELAY_S,
    compute_s: float = COMPUTE_S,
) -> tuple[list[Any], float]:
    """n - 1 stages; results, and the seconds all took."""
    kernel = Kernel(trace=Trace("test"))
    resources: dict[str, Fifo | Fair] = {f"compute:{rank}": Fifo(f"compute:{rank}") for rank in range(n)}

    def price(effect: Effect, rank: int) -> Price:
        return Price((((f"compute:{rank}",), compute_s),)) if isinstance(effect, Compute) else Price()

    world = SimWorld(kernel, price, resources, execute=True)

    def compute(rank: int) -> Callable[[Any], Compute]:
        return lambda batch: Compute((), lambda x: [*x, rank], (batch,))

    for rank in range(n - 1):
        link_s = delay_s if rank < n - 2 else 0.0
        world.launch(rank, stage(rank, n, compute(rank), room=room, delay_s=link_s))
    world.launch(n - 1, controller(n - 1, n, batches, in_flight=in_flight))
    return world.run()[-1], kernel.now()


@pytest.mark.parametrize("room", [0, 1, 3])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_every_batch_passes_all_stages_in_order(n: int, room: int) -> None:
    results, _ = simulate(n, [[100 + i] for i in range(7)], room=room, in_flight=4)
    assert results == [[100 + i, *range(n - 1)] for i in range(7)]


@pytest.mark.parametrize(("compute_s", "delay_s"), [(0.05, 0.02), (0.02, 0.05), (0.03, 0.03)])
def test_a_batch_takes_the_longer_of_computing_and_carrying(compute_s: float, delay_s: float) -> None:
    """And their sum if sends block."""
    period_s = {}
    for room in (0, 1):
        some, more = (
            simulate(
                4, [[i] for i in range(num)], room=room, in_flight=8, delay_s=delay_s, compute_s=compute_s
            )[1]
            for num in (20, 60)
        )
        period_s[room] = (more - some) / 40
    assert period_s[1] == pytest.approx(max(compute_s, delay_s))
    assert period_s[0] == pytest.approx(compute_s + delay_s)


def test_the_same_file_runs_on_threads() -> None:
    """Two stages whose links are queues."""
    links = [SimpleQueue[Any]() for _ in range(3)]
    failed: list[BaseException] = []
    how = {Send: lambda e: links[e.to].put(e.x), Recv: lambda e: links[(e.source + 1) % 3].get()}
    for me in (0, 1):
        strategy = stage(me, 3, lambda batch, me=me: Compute((), lambda x: [*x, me], (batch,)))  # type: ignore[misc]
        Thread(target=ThreadWorld(how, failed.append).run, args=(strategy,), daemon=True).start()
    for i in range(20):
        links[0].put([i])
    links[0].put(None)
    assert [links[2].get(timeout=10) for _ in range(21)] == [*([i, 0, 1] for i in range(20)), None]
    assert failed == []


def test_an_error_of_a_child_is_told_and_ends_who_waits() -> None:
    def broken(effect: Recv) -> Any:
        raise OSError("the pipe is gone")

    told: list[BaseException] = []
    with pytest.raises(OSError, match="the pipe is gone"):
        ThreadWorld({Recv: broken}, told.append).run(stage(0, 2, lambda x: Compute(())))
    assert {str(error) for error in told} <= {"the pipe is gone"}  # maybe not yet
