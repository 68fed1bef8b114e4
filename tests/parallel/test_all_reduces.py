"""Sums over ranks: the same bits on all, in the time of their closed forms, and the right one chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lightwork.cluster import CostModel, parse_place
from lightwork.cluster.devices import Link
from lightwork.parallel.all_reduces import AllReduce, quickest
from lightwork.parallel.all_reduces.direct import Direct
from lightwork.parallel.all_reduces.ring import Ring
from lightwork.parallel.all_reduces.star import Star
from lightwork.parallel.all_reduces.tree import Tree
from lightwork.runtime import Kernel, Meta, SimWorld, Trace

WAYS: tuple[AllReduce, ...] = (Ring(), Star(), Direct(), Tree())
SLOW = Link(name="wifi", a="device", b="device", bytes_per_s=300e6 / 8, latency_s=5e-3)


def world(link: Link = SLOW, *, execute: bool = False, trace: Trace | None = None) -> SimWorld:
    cluster = replace(parse_place("sim:h100x8"), inner=link)
    costs = CostModel(cluster)
    return SimWorld(Kernel(trace=trace), costs.price, costs.resources(), execute=execute)


def summed(way: AllReduce, given: list[Any]) -> list[Any]:
    """What every rank gets."""
    found: list[Any] = [None] * len(given)

    async def rank(me: int) -> None:
        found[me] = await way.sum(me, len(given), given[me].copy())

    ranks = world(execute=True)
    for me in range(len(given)):
        ranks.launch(me, rank(me))
    ranks.run()
    return found


@pytest.mark.parametrize("way", WAYS, ids=repr)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_every_rank_gets_the_sum_with_the_same_bits(way: AllReduce, n: int) -> None:
    rng = np.random.default_rng(n)
    given = [rng.standard_normal((3, 7)).astype(np.float32) for _ in range(n)]
    found = summed(way, given)
    np.testing.assert_allclose(found[0], np.sum(given, axis=0, dtype=np.float64), atol=1e-5)
    assert len({x.tobytes() for x in found}) == 1


def test_in_the_order_of_the_ranks_wherever_it_is_added_up() -> None:
    given = [np.array([x], np.float32) for x in (1e8, 1.0, -1e8, 1.0)]
    for way in (Star(), Direct()):
        assert summed(way, given)[0] == [1.0]


@pytest.mark.parametrize("way", WAYS, ids=repr)
@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("numbers", [8192, 1 << 22])
def test_it_takes_the_time_of_its_closed_form(way: AllReduce, n: int, numbers: int) -> None:
    ranks, x = world(), Meta((numbers,))
    for me in range(n):
        ranks.launch(me, way.sum(me, n, x))
    ranks.run()
    assert ranks.kernel.now() == pytest.approx(way.seconds(n, x.nbytes, SLOW), rel=2e-3)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_messages_of_a_star_meet_in_the_first_rank(n: int) -> None:
    trace = Trace("simulated")
    ranks = world(trace=trace)
    for me in range(n):
        ranks.launch(me, Star().sum(me, n, Meta((8,))))
    ranks.run()
    sent = Counter((span.rank, span.peer) for span in trace.spans if span.kind == "send")
    others = [str(rank) for rank in range(1, n)]
    assert sent == Counter([(rank, "0") for rank in others] + [("0", rank) for rank in others])


def test_few_hops_where_the_link_is_slow_and_few_bytes_where_it_is_narrow() -> None:
    ways = (Ring(), Star())
    assert quickest(ways, 8, 32e3, SLOW) == Star()
    assert quickest(ways, 8, 64e6, SLOW) == Ring()
    assert quickest(WAYS, 8, 32e3, SLOW) == Direct()
    assert quickest(WAYS, 1, 32e3, SLOW) == Ring()
