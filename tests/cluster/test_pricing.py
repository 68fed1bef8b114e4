"""Prices are the closed forms: roofline, tiles, links, collectives; and a simulated world pays them."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.cluster import CostModel, parse_place
from lightwork.errors import SpecError
from lightwork.runtime import (
    Collective,
    Compute,
    Kernel,
    Meta,
    Move,
    Recv,
    Send,
    SimWorld,
    VirtualClock,
    Wait,
    Work,
)

COSTS = CostModel(parse_place("sim:h100x64"))
LAUNCH_S = COSTS.cluster.device.unit.launch_s
INNER, OUTER = COSTS.cluster.inner, COSTS.cluster.outer
assert INNER is not None
PLAIN = replace(COSTS.cluster, inner=replace(INNER, protocols=()))
assert OUTER is not None


def matmul(rows: int, size: int = 4096) -> Work:
    return Work(dtype="bfloat16", ops=2.0 * rows * size * size, bytes=2.0 * size * size, rows=rows)


def test_an_operation_takes_the_longer_of_arithmetic_and_traffic():
    device = COSTS.cluster.device
    few, many = matmul(1), matmul(8192)
    assert COSTS.seconds([few]) == pytest.approx(few.bytes / device.memory().read_bytes_per_s + LAUNCH_S)
    assert COSTS.seconds([many]) == pytest.approx(many.ops / device.unit.rates["matmul/bfloat16"] + LAUNCH_S)
    assert COSTS.seconds([few, many]) == pytest.approx(COSTS.seconds([few]) + COSTS.seconds([many]))
    assert COSTS.seconds([]) == 0.0
    assert COSTS.seconds([Work(launches=7)]) == pytest.approx(7 * LAUNCH_S)


@given(rows=st.integers(1, 4096), more=st.integers(0, 512))
def test_more_rows_never_take_less_time(rows: int, more: int):
    """Tile quantisation: a full tile costs what a started one does."""
    assert COSTS.seconds([matmul(rows + more)]) >= COSTS.seconds([matmul(rows)]) * (1 - 1e-9)


def test_a_started_tile_costs_as_much_as_a_full_one():
    assert COSTS.seconds([matmul(2049)]) == pytest.approx(COSTS.seconds([matmul(2176)]), rel=1e-3)
    assert COSTS.seconds([matmul(2049)]) > COSTS.seconds([matmul(2048)]) * 1.05


def test_a_fused_layer_overlaps_its_work_and_keeps_what_is_between_on_the_chip():
    """Arithmetic and weights of all operations stream together; elementwise traffic and launches go."""
    costs = CostModel(parse_place("sim:sn40l"))
    device = costs.cluster.device
    few, many = matmul(1), matmul(8192)
    between = Work(kind="vector", dtype="bfloat16", ops=1e6, bytes=1e12, launches=10)
    read_s = (few.bytes + many.bytes) / device.memory().read_bytes_per_s
    compute_s = sum(w.ops / device.unit.rate(w.kind, w.dtype) for w in (few, many, between))
    assert costs.seconds([few, many, between], kernels=3) == pytest.approx(
        max(read_s, compute_s) + 3 * device.unit.launch_s
    )
    assert costs.bounds([few, between], kernels=1)["memory"] == pytest.approx(
        few.bytes / device.memory().read_bytes_per_s
    )
    assert costs.seconds([few, many, between]) > 1e12 / device.memory().read_bytes_per_s


def test_what_the_machine_cannot_do_is_refused():
    with pytest.raises(SpecError, match="float64"):
        COSTS.seconds([Work(dtype="float64", ops=1.0)])
    with pytest.raises(SpecError, match="l9"):
        COSTS.seconds([Work(bytes=1.0, level="l9")])
    with pytest.raises(SpecError, match="gossip"):
        COSTS.collective_seconds("gossip", (0, 1), 1.0)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_large_all_reduce_is_a_ring(n: int):
    nbytes = 1e9
    expected = 2 * (n - 1) * (nbytes / n / PLAIN.inner.bytes_per_s + PLAIN.inner.latency_s)
    costs = CostModel(PLAIN)
    assert costs.collective_seconds("all_reduce", range(n), nbytes) == pytest.approx(expected)
    half = costs.collective_seconds("all_gather", range(n), nbytes)
    assert half == costs.collective_seconds("reduce_scatter", range(n), nbytes) == pytest.approx(expected / 2)


def test_a_small_all_reduce_is_a_tree():
    inner, costs = PLAIN.inner, CostModel(PLAIN)
    expected = 2 * ceil(log2(8)) * (8 / inner.bytes_per_s + inner.latency_s)
    assert costs.collective_seconds("all_reduce", range(8), 8) == pytest.approx(expected)
    assert costs.collective_seconds("barrier", range(8), 0) == pytest.approx(6 * inner.latency_s)
    assert costs.collective_seconds("all_reduce", (3,), 1e9) == 0.0


@pytest.mark.parametrize(("nbytes", "fastest"), [(1e4, 0), (4e6, 1), (1e9, 2)])
def test_a_ring_takes_the_fastest_protocol_of_its_link(nbytes: float, fastest: int):
    start_s, hop_s, share = INNER.protocols[fastest]
    expected = start_s + 14 * (nbytes / 8 / INNER.bytes_per_s / share + hop_s)
    assert COSTS.collective_seconds("all_reduce", range(8), nbytes) == pytest.approx(expected)


def test_whole_nodes_reduce_inside_first():
    """Each device of a node carries an eighth of the sum between nodes: all eight NICs work."""
    nbytes, nodes = 1e9, 4
    inside = 2 * COSTS.collective_seconds("all_gather", range(8), nbytes)
    between = 2 * (nodes - 1) * (nbytes / 8 / nodes / OUTER.bytes_per_s + OUTER.latency_s)
    assert COSTS.collective_seconds("all_reduce", range(32), nbytes) == pytest.approx(inside + between)
    flat = 2 * (nodes - 1) * (nbytes / nodes / OUTER.bytes_per_s + OUTER.latency_s)
    assert COSTS.collective_seconds("all_reduce", range(0, 32, 8), nbytes) == pytest.approx(flat)


def test_sends_take_the_link_between_their_ends():
    x = Meta((1 << 20,), "bfloat16")
    near, far = COSTS.price(Send(7, x), 0), COSTS.price(Send(8, x), 0)
    assert near.latency_s == INNER.latency_s
    assert far.latency_s == OUTER.latency_s
    rates = [COSTS.resource(price.demands[0][0][0]).bytes_per_s for price in (near, far)]
    assert rates == [INNER.bytes_per_s, OUTER.bytes_per_s]
    with pytest.raises(SpecError, match="no links"):
        CostModel(parse_place("sim:cpu")).resource("out:0")


def test_moves_take_the_slower_memory_and_waiting_is_free():
    x = Meta((1 << 20,), "float32")
    into = COSTS.price(Move(x, "host", "memory"), 3)
    assert into.demands == ((("host:3",), x.nbytes),)
    added = COSTS.price(Move(x, "memory", "host", op="add"), 3)
    assert added.demands == ((("host:3",), 2 * x.nbytes),)
    assert COSTS.price(Move(x, "peer:7", "memory"), 0) == COSTS.price(Send(0, x), 7)
    for effect in (Recv(0), Wait("ready")):
        assert COSTS.price(effect, 0).demands == ()
    assert COSTS.price(Compute([matmul(4)]), 5).demands == ((("compute:5",), COSTS.seconds([matmul(4)])),)


@pytest.mark.parametrize(
    ("kind", "x", "whole"),
    [
        ("all_reduce", Meta((1000,)), 4000),
        ("all_gather", Meta((1000,)), 16000),
        ("reduce_scatter", [Meta((1000,))] * 4, 16000),
        ("all_to_all", [Meta((1000,))] * 4, 16000),
        ("broadcast", Meta((1000,)), 4000),
    ],
)
def test_a_collective_counts_the_bytes_of_its_whole_result(kind, x, whole):
    price = COSTS.price(Collective(kind, (0, 1, 2, 3), [x] * 4), 0)
    assert price.latency_s == pytest.approx(COSTS.collective_seconds(kind, range(4), whole))


def test_an_all_to_all_takes_as_long_as_its_busiest_rank_on_either_link():
    """Who has nothing for each other does not meet."""
    sent = np.zeros((4, 4))
    sent[0, 1], sent[2, 1], sent[3, 1], sent[1, 0] = 5e8, 2e8, 1e8, 4e8
    group = (0, 1, 8, 9)  # two of each node
    expected = 5e8 / INNER.bytes_per_s + INNER.latency_s + 3e8 / OUTER.bytes_per_s + 2 * OUTER.latency_s
    assert COSTS.all_to_all_seconds(group, sent) == pytest.approx(expected)
    parts = [[Meta((int(x),), "int8") for x in row] for row in sent]
    assert COSTS.price(Collective("all_to_all", group, parts), 0).latency_s == pytest.approx(expected)
    assert COSTS.all_to_all_seconds(group, np.diag([1e9] * 4)) == 0.0


def test_a_simulated_world_pays_these_prices():
    x = Meta((1 << 20,), "bfloat16")

    async def sender():
        await Compute([matmul(64)])
        await Send(8, x)

    async def receiver():
        await Recv(0, like=x)

    kernel = Kernel(VirtualClock())
    world = SimWorld(kernel, COSTS.price, COSTS.resources())
    world.launch(0, sender())
    world.launch(8, receiver())
    world.run()
    expected = COSTS.seconds([matmul(64)]) + x.nbytes / OUTER.bytes_per_s + OUTER.latency_s
    assert kernel.now() == pytest.approx(expected)
