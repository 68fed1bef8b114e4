"""Layers that have no room: they stay in a larger memory, and each is fetched while those before it compute.

Paper:  "EnergonAI: An Inference System for 10-100 Billion Parameter Transformer Models", 2022 (peer memory
        pooling: the larger memory is that of a neighbour device)
Idea:   layers that are away lie evenly between those that are here, so each has as much computing to hide
        behind; a few slots take turns: one is read, the next is filled. Passes follow one another, so the
        first layer that is away is fetched while the pass before ends
Shapes: layers 0 to num_layers - 1, of which `away` are elsewhere -> the same result, in room for the others
        and `slots`
Cost:   a pass takes the longer of its computing and its fetching, with two slots or more
Claims: energonai
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from lightwork.runtime.effects import Compute, Move, Signal, Spawn, Wait

Fetch = Callable[[int, int], Move]
"""(layer, slot) -> what brings it there."""
Use = Callable[[int, int | None, Any], Compute]
"""(layer, its slot or None if it is here, input) -> what computes it."""


def spread(num_layers: int, num_away: int) -> list[int]:
    """Which layers to keep elsewhere: each is the last of as many as there are for each."""
    return [num_layers * (k + 1) // num_away - 1 for k in range(num_away)]


def pass_s(num_layers: int, num_away: int, compute_s: float, fetch_s: float) -> float:
    """Seconds of a pass among others. compute_s, fetch_s: of a layer."""
    return max(num_layers * compute_s, num_away * fetch_s)


def hidden(num_layers: int, num_away: int, compute_s: float, fetch_s: float) -> bool:
    """Whether fetching costs no time: it takes no longer than the computing between two layers that are
    away."""
    return pass_s(num_layers, num_away, compute_s, fetch_s) <= num_layers * compute_s


async def passes(
    me: int,
    inputs: Sequence[Any],
    num_layers: int,
    away: Sequence[int],
    fetch: Fetch,
    use: Use,
    *,
    slots: int = 2,
) -> list[Any]:
    """Rank `me` computes one pass after the other."""
    await Spawn(prefetch(me, away, fetch, slots=slots), "prefetch")
    return [
        await one_pass(me, number, x, num_layers, away, use, slots=slots) for number, x in enumerate(inputs)
    ]


async def prefetch(me: int, away: Sequence[int], fetch: Fetch, *, slots: int = 2) -> None:
    """Fill one slot after the other, for ever: layers in order, then from the first again."""
    if not away:
        return
    for k in count():
        await Wait(f"{me} read", k + 1 - slots)
        await fetch(away[k % len(away)], k % slots)
        await Signal(f"{me} fetched")


async def one_pass(
    me: int, number: int, x: Any, num_layers: int, away: Sequence[int], use: Use, *, slots: int = 2
) -> Any:
    """What the layers make of x. number: of passes before this one."""
    k = number * len(away)
    elsewhere = frozenset(away)
    for layer in range(num_layers):
        if layer not in elsewhere:
            x = await use(layer, None, x)
            continue
        await Wait(f"{me} fetched", k + 1)
        x = await use(layer, k % slots, x)
        await Signal(f"{me} read")
        k += 1
    return x
