"""Experts placed by affinity: within capacity, as good as an integer program."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from lightwork.claims._routes import iid_trace, planted_trace
from lightwork.errors import RangeError
from lightwork.models.routing import Affinity
from lightwork.parallel.expert_placement import ExpertPlacement
from lightwork.plan.place_experts import cost, distances, place


def least_cost(affinity: Affinity, distance_GG: np.ndarray) -> float:
    """By the paper's integer program: a binary for each expert and rank, a crossing for each two experts."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    num_layers, size, ranks = affinity.num_layers, affinity.num_experts, len(distance_GG)
    held = np.arange(num_layers * size * ranks).reshape(num_layers, size, ranks)
    pairs = num_layers - 1, size, size
    crossed = held.size + np.arange(np.prod(pairs)).reshape(pairs)
    total = held.size + crossed.size
    rows, low, high = [], [], []

    def constrain(terms: list[tuple[int, float]], least: float, most: float) -> None:
        row = np.zeros(total)
        for at, factor in terms:
            row[at] += factor
        rows.append(row)
        low.append(least)
        high.append(most)

    for layer in range(num_layers):
        for e in range(size):
            constrain([(at, 1.0) for at in held[layer, e]], 1, 1)
        for g in range(ranks):
            constrain([(at, 1.0) for at in held[layer, :, g]], size // ranks, size // ranks)
    for (layer, i, j), at in np.ndenumerate(crossed):
        for g in range(ranks):
            for h in range(ranks):
                if distance_GG[g, h]:
                    d = distance_GG[g, h]
                    constrain([(at, 1.0), (held[layer, i, g], -d), (held[layer + 1, j, h], -d)], -d, np.inf)
    paid = np.concatenate([np.zeros(held.size), affinity.joint_LEE.reshape(-1)])
    whole = (np.arange(total) < held.size).astype(int)
    solved = milp(
        paid,
        constraints=LinearConstraint(np.array(rows), low, high),
        integrality=whole,
        bounds=Bounds(0, np.where(whole, 1, np.inf)),
    )
    assert solved.success
    return float(solved.fun)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("size", "distance"), [(4, distances(2)), (4, distances(4, 2, across=4.0))])
def test_the_integer_program_finds_nothing_better(size: int, distance: np.ndarray, seed: int) -> None:
    affinity = Affinity.of(iid_trace(40, 3, size, seed=seed))
    found = place(affinity, distance, starts=32)
    assert cost(affinity, found.rank_LE, distance) == pytest.approx(least_cost(affinity, distance))


@pytest.mark.parametrize(("layers", "size", "ranks"), [(12, 32, 4), (12, 8, 4), (24, 64, 8)])
def test_what_was_planted_is_found_on_tokens_that_were_not_seen(layers: int, size: int, ranks: int) -> None:
    trace, hidden = planted_trace(9000, layers, size, ranks)
    found = place(Affinity.of(trace.part(0, 5000)), distances(ranks))
    new = trace.part(5000, 9000)
    assert found.local_fraction(new) == pytest.approx(hidden.local_fraction(new), abs=0.01)
    assert found.local_fraction(new) > 2 * ExpertPlacement.in_order(layers, size, ranks).local_fraction(new)
    assert found.crossings(new) == pytest.approx((1 - found.local_fraction(new)) * (layers - 1))


def test_nothing_is_gained_on_a_router_without_memory() -> None:
    """On new tokens; on those that were placed by there is always something."""
    trace = iid_trace(25_000, 12, 16)
    found = place(Affinity.of(trace.part(0, 5000)), distances(4))
    assert found.local_fraction(trace.part(0, 5000)) > 0.26
    assert found.local_fraction(trace.part(5000, 25_000)) == pytest.approx(0.25, rel=0.05)


def test_dear_links_are_crossed_less() -> None:
    """Two nodes of two ranks: paying more for the way between nodes moves crossings into them."""
    trace, _ = planted_trace(6000, 8, 16, 4, stay=0.3)
    affinity = Affinity.of(trace.part(0, 5000))
    flat, dear = (place(affinity, distances(4, 2, across=across)) for across in (1.0, 10.0))
    assert dear.crossings(trace, per_node=2) < flat.crossings(trace, per_node=2)
    assert dear.crossings(trace) >= flat.crossings(trace)
    crossed = cost(affinity, dear.rank_LE, distances(4, 2, across=10.0))
    nodes = dear.crossings(trace.part(0, 5000), per_node=2)
    assert crossed == pytest.approx(dear.crossings(trace.part(0, 5000)) + 9 * nodes)


def test_one_seed_gives_one_placement() -> None:
    affinity = Affinity.of(iid_trace(300, 5, 8))
    a, b = (place(affinity, distances(4), seed=3) for _ in range(2))
    assert np.array_equal(a.rank_LE, b.rank_LE)


def test_experts_that_cannot_be_dealt_evenly_are_refused_with_both_numbers() -> None:
    with pytest.raises(RangeError, match="6 experts of a layer cannot be dealt evenly to 4 ranks"):
        place(Affinity.of(iid_trace(10, 2, 6)), distances(4))
    with pytest.raises(RangeError, match="8 experts of a layer cannot be dealt evenly to 3 ranks"):
        ExpertPlacement.in_order(2, 8, 3)
    with pytest.raises(RangeError, match="rank 0 of 2 holds 3 experts of layer 1"):
        ExpertPlacement(rank_LE=np.array([[0, 0, 1, 1], [0, 0, 0, 1]]), num_ranks=2)
    with pytest.raises(RangeError, match="6 ranks do not fill nodes of 4"):
        distances(6, 4)
    with pytest.raises(RangeError, match="0 starts"):
        place(Affinity.of(iid_trace(10, 2, 4)), distances(2), starts=0)
