"""How to stream a model's weights through a limited memory: what a pass takes, by simulating the strategy
that runs for real, and which window takes least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from lightwork.errors import CapacityError
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.window import Window
from lightwork.memory.residents import Residents
from lightwork.memory.streamed import Stream, one_pass, passes
from lightwork.runtime.effects import Compute, Effect, Move
from lightwork.runtime.effects import Price as Cost
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Fair, Fifo
from lightwork.runtime.simulated import SimWorld

WARM, COUNTED = 2, 12
"""Passes until the window has reached its course, and those whose mean is taken."""


class UnitTimes(NamedTuple):
    """Of one unit of a model: bytes, and seconds to compute it and to copy it."""

    nbytes: int
    compute_s: float
    copy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """What a pass is predicted to take. cap_bytes: of the arena. copies: a pass."""

    policy: Any
    pass_s: float
    copies: float
    cap_bytes: int


def predict(units: Mapping[str, UnitTimes], policy: Residency[Any]) -> Streamed:
    """Simulate passes that follow one another. units: in the order of a pass. policy: one with a ring."""
    ring = policy.ring
    assert ring is not None, "only a policy that streams has a pass to predict"
    sizes = {name: unit.nbytes for name, unit in units.items()}
    cap_bytes = min(ring.slots, len(units)) * max(sizes.values())
    residents = Residents(sizes, cap_bytes, policy, [*units])
    kernel = Kernel()
    resources: dict[str, Fifo | Fair] = {name: Fifo(name) for name in ("compute", "disk")}

    def price(effect: Effect, rank: int) -> Cost:
        if isinstance(effect, Move):
            return Cost(((("disk",), units[effect.x].copy_s),))
        assert isinstance(effect, Compute)
        return Cost(((("compute",), units[effect.name].compute_s),))

    ends: list[tuple[float, int]] = []

    def use(name: str, slot: int, x: Any) -> Compute:
        if name == first:
            ends.append((kernel.now(), residents.copies))
        return Compute((), None, (x,), name)

    first = next(iter(units))
    world = SimWorld(kernel, price, resources)
    inputs = [None] * (WARM + COUNTED + 1)
    fetch = lambda name, slot: Move(name, "disk", "memory")  # noqa: E731
    stream = Stream(residents)
    world.launch(0, passes(stream, fetch, partial(one_pass, stream, [*units], use), inputs))
    world.run()
    (begin_s, before), (end_s, after) = ends[WARM], ends[WARM + COUNTED]
    return Streamed(
        policy=policy,
        pass_s=(end_s - begin_s) / COUNTED,
        copies=(after - before) / COUNTED,
        cap_bytes=cap_bytes,
    )


def search(units: Mapping[str, UnitTimes], cap_bytes: int) -> Streamed:
    """The window of as many units as fit that is predicted to take least; of equal ones, that with the fewest
    copies.

    Raises CapacityError if not even one unit fits.
    """
    largest = max(unit.nbytes for unit in units.values())
    k = min(len(units), cap_bytes // largest)
    if k < 1:
        raise CapacityError(
            f"{cap_bytes} bytes for weights",
            expected=f"at least {largest}, the largest unit",
            fix="allow more, or store weights in fewer bits",
        )
    if k == len(units):
        return predict(units, Window(k=k))
    windows = [
        Window(k=k, k_move=k_move, stay=stay) for stay in range(k) for k_move in range(1, k - stay + 1)
    ]
    return min(
        (predict(units, window) for window in windows),
        key=lambda found: (found.pass_s, found.copies, found.policy.k_move),
    )
