"""Threads that carry out a strategy: they wait for one another, and an error of one ends all."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from lightwork.errors import SpecError
from lightwork.parallel.lanes import Lanes
from lightwork.runtime.effects import Compute, Send, Signal, Spawn, Wait


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes(3)
    yield made
    made.close()


def test_children_compute_on_threads_of_their_own_and_wait_for_each_other(lanes: Lanes) -> None:
    log: list[str] = []
    threads: set[int] = set()

    async def late() -> str:
        await Wait("early", 2)
        await Compute((), log.append, ("late",))
        threads.add(threading.get_ident())
        return "value"

    async def early() -> None:
        for _ in range(2):
            await Compute((), log.append, ("early",))
            threads.add(threading.get_ident())
            await Signal("early")

    async def both() -> str:
        children = [await Spawn(late()), await Spawn(early())]
        await children[1]
        return str(await children[0])

    for _ in range(3):  # counters begin anew
        assert lanes.run(both()) == "value"
    assert log == ["early", "early", "late"] * 3
    assert len(threads) >= 2
    assert threading.get_ident() not in threads


def test_an_error_of_one_ends_those_that_wait_for_it(lanes: Lanes) -> None:
    async def fails() -> None:
        await Compute((), [].pop)

    async def waits() -> None:
        await Wait("never")

    async def both() -> None:
        children = [await Spawn(waits()), await Spawn(fails())]
        for child in children:
            await child

    with pytest.raises(IndexError):
        lanes.run(both())


def test_children_infer_if_their_caller_does(lanes: Lanes) -> None:
    async def asks() -> bool:
        return bool(await Compute((), torch.is_inference_mode_enabled))

    async def main() -> bool:
        return bool(await (await Spawn(asks())))

    assert lanes.run(main()) is False
    with torch.inference_mode():
        assert lanes.run(main()) is True


def test_what_is_not_for_lanes_is_refused(lanes: Lanes) -> None:
    async def sends() -> None:
        await Send(0, None)

    with pytest.raises(SpecError, match="is not for lanes"):
        lanes.run(sends())
