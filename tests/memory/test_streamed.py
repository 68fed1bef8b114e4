"""Weights that pass through a small memory, simulated: the right ones are read, in the time foreseen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from lightwork.errors import CapacityError, CheckpointError
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.sliding import Sliding
from lightwork.memory.residencies.window import Window
from lightwork.memory.residents import Residents
from lightwork.memory.streamed import Stream, one_pass, passes
from lightwork.plan.streaming import UnitTimes, predict, search
from lightwork.runtime import Compute, Effect, Fair, Fifo, Kernel, Move, Price, SimWorld
from lightwork.runtime.effects import Signal, Wait

NUM = 12
NAMES = [f"unit {i}" for i in range(NUM)]
POLICIES = [
    Sliding(),
    Sliding(window=4),
    Window(k=1),
    Window(k=4, k_move=2),
    Window(k=5, k_move=3, stay=2),
    Window(k=NUM),
]


def stream(policy: Residency[Any]) -> Stream:
    assert policy.ring is not None
    slots = min(policy.ring.slots, NUM)
    return Stream(Residents(dict.fromkeys(NAMES, 1), slots, policy, NAMES))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_every_pass_computes_all_units_in_order_from_slots_that_hold_them(policy: Residency[Any]) -> None:
    kernel = Kernel()
    resources: dict[str, Fifo | Fair] = {name: Fifo(name) for name in ("compute", "disk")}
    holds: dict[int, str] = {}

    def price(effect: Effect, rank: int) -> Price:
        if isinstance(effect, Move):
            name, slot = effect.x
            holds[slot] = name
            return Price(((("disk",), 1.7),))
        return Price(((("compute",), 1.0),))

    def use(name: str, slot: int, x: Sequence[str]) -> Compute:
        def append(done: Sequence[str]) -> Sequence[str]:
            assert holds[slot] == name
            return [*done, name]

        return Compute((), append, (x,))

    world = SimWorld(kernel, price, resources, execute=True)
    move = lambda name, slot: Move((name, slot), "disk", "memory")  # noqa: E731
    made = stream(policy)
    world.launch(0, passes(made, move, partial(one_pass, made, NAMES, use), [[]] * 3))
    assert world.run() == [[NAMES] * 3]


def test_a_copy_that_fails_is_told_to_who_needs_it_and_made_again() -> None:
    """By hand: effects are answered as a world would, the third copy with an error."""
    made = stream(Sliding(window=3))
    failing = {"unit 2"}

    def run_pass() -> list[str]:
        """Copies are made when they are waited for."""
        computed: list[str] = []
        coro = one_pass(made, NAMES, lambda name, slot, x: Compute((), None, (), name), None)
        effect = coro.send(None)
        try:
            while True:
                if isinstance(effect, Wait):
                    while made.todo:
                        asked = made.todo.popleft()
                        assert asked is not None
                        number, name, _ = asked
                        if name in failing:
                            failing.remove(name)
                            made.failed[number] = CheckpointError(f"{name} is lost")
                elif isinstance(effect, Compute):
                    computed.append(effect.name)
                else:
                    assert isinstance(effect, Signal)
                effect = coro.send(None)
        except StopIteration:
            return computed

    with pytest.raises(CheckpointError, match="unit 2 is lost"):
        run_pass()
    assert "unit 2" not in made.residents
    assert run_pass() == NAMES
    assert run_pass() == NAMES
    assert made.residents.nbytes == 3


def units(compute_s: float, copy_s: float) -> dict[str, UnitTimes]:
    return {name: UnitTimes(10, compute_s, copy_s) for name in NAMES}


@pytest.mark.parametrize("copy_s", [0.2, 0.9, 1.0, 1.6, 5.0])
def test_a_pass_takes_the_longer_of_computing_and_copying(copy_s: float) -> None:
    for policy in (Sliding(), Sliding(window=3), Window(k=4), Window(k=6, k_move=2), Window(k=6, k_move=3)):
        assert predict(units(1.0, copy_s), policy).pass_s == pytest.approx(NUM * max(1.0, copy_s))
    for stay in (2, 4, 6):
        found = predict(units(1.0, copy_s), Window(k=stay + 2, stay=stay))
        assert found.copies == NUM - stay
        assert found.pass_s == pytest.approx(max(NUM * 1.0, (NUM - stay) * copy_s), rel=0.1)


def test_without_a_second_slot_nothing_overlaps() -> None:
    assert predict(units(1.0, 2.0), Window(k=1)).pass_s == pytest.approx(NUM * 3.0)
    assert predict(units(1.0, 2.0), Window(k=NUM)).pass_s == pytest.approx(NUM * 1.0)


def test_memory_is_linear_in_k_and_time_bends_where_a_copy_takes_as_long_as_computing() -> None:
    caps = [predict(units(1.0, 1.0), Window(k=k)).cap_bytes for k in range(1, NUM + 1)]
    assert caps == [10 * k for k in range(1, NUM + 1)]
    times = [predict(units(1.0, s), Window(k=3)).pass_s for s in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert times == pytest.approx([NUM * s for s in (1.0, 1.0, 1.0, 2.0, 4.0)])


def test_the_search_lets_units_stay_where_copies_are_slow_and_none_where_they_are_hidden() -> None:
    slow = search(units(1.0, 3.0), 65)
    assert slow.cap_bytes == 60
    assert slow.policy.k == 6
    assert slow.copies <= NUM - 4
    assert slow.pass_s < 1.05 * (NUM - 4) * 3.0
    hidden = search(units(1.0, 0.1), 65)
    assert hidden.pass_s == pytest.approx(NUM)
    whole = search(units(1.0, 3.0), 1000)
    assert (whole.copies, whole.pass_s) == (0, NUM)
    with pytest.raises(CapacityError, match="9 bytes for weights"):
        search(units(1.0, 1.0), 9)
