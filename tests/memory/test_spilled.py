"""Layers that are away: the same result, as fast as the closed form says, hidden exactly when it says so."""

from __future__ import annotations

from typing import Any

import pytest

from lightwork.memory.spilled import hidden, pass_s, passes, spread
from lightwork.runtime import Compute, Effect, Fair, Fifo, Kernel, Move, Price, SimWorld

NUM_LAYERS = 12


def simulate(
    num_passes: int, num_away: int, compute_s: float, fetch_s: float, slots: int = 2
) -> tuple[list[Any], float]:
    """What passes make of [], and the seconds they took. A slot that is read must hold its layer."""
    kernel = Kernel()
    resources: dict[str, Fifo | Fair] = {name: Fifo(name) for name in ("compute", "link")}
    holds: dict[int, int] = {}

    def price(effect: Effect, rank: int) -> Price:
        if isinstance(effect, Move):
            layer, slot = effect.x
            holds[slot] = layer
            return Price(((("link",), fetch_s),))
        return Price(((("compute",), compute_s),))

    def use(layer: int, slot: int | None, x: Any) -> Compute:
        def append(done: Any) -> Any:
            assert slot is None or holds[slot] == layer
            return [*done, (layer, slot is not None)]

        return Compute((), append, (x,))

    world = SimWorld(kernel, price, resources, execute=True)
    away = spread(NUM_LAYERS, num_away)
    fetch = lambda layer, slot: Move((layer, slot), "peer:1", "memory")  # noqa: E731
    world.launch(0, passes(0, [[]] * num_passes, NUM_LAYERS, away, fetch, use, slots=slots))
    return world.run()[0], kernel.now()


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("num_away", [0, 1, 3, 5, 12])
def test_every_pass_computes_all_layers_in_order(num_away: int, slots: int) -> None:
    away = spread(NUM_LAYERS, num_away)
    results, _ = simulate(3, num_away, 1.0, 2.5, slots)
    assert results == [[(layer, layer in away) for layer in range(NUM_LAYERS)]] * 3


@pytest.mark.parametrize("num_away", [1, 3, 4, 6, 12])
@pytest.mark.parametrize("fetch_s", [0.5, 0.9, 1.9, 4.1, 13.0])
def test_a_pass_takes_the_longer_of_computing_and_fetching(num_away: int, fetch_s: float) -> None:
    took_s = (simulate(30, num_away, 1.0, fetch_s)[1] - simulate(10, num_away, 1.0, fetch_s)[1]) / 20
    predicted_s = pass_s(NUM_LAYERS, num_away, 1.0, fetch_s)
    assert took_s == pytest.approx(predicted_s)
    assert hidden(NUM_LAYERS, num_away, 1.0, fetch_s) == (took_s == pytest.approx(NUM_LAYERS * 1.0))


@pytest.mark.parametrize("num_away", range(1, NUM_LAYERS + 1))
def test_layers_that_are_away_lie_evenly(num_away: int) -> None:
    away = spread(NUM_LAYERS, num_away)
    gaps = [b - a for a, b in zip([-1, *away], away, strict=False)]
    assert sum(gaps) == NUM_LAYERS
    assert max(gaps) - min(gaps) <= 1
