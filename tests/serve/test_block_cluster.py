"""Chains of blocks on a simulated cluster: everything is answered, and each hop takes the cheapest way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from lightwork.claims._block_fleet import Replayed
from lightwork.cluster import CostModel, parse_place
from lightwork.errors import CapacityError, RangeError
from lightwork.runtime.kernel import Kernel
from lightwork.serve.block_cluster import BlockCluster
from lightwork.serve.block_prices import BlockPrices
from lightwork.serve.block_sites import Asked
from lightwork.serve.catalogue import Catalogue, FineTune, apart, in_blocks, parameters_shared
from lightwork.serve.hops import Candidate, Choice, Demand, Hop, Instance, Stored
from lightwork.serve.hops.block_llm import BlockLLM
from lightwork.serve.hops.pinned import Pinned
from lightwork.serve.loads import Arrival

NEAR = (0.005, 0.005, 0.005, None)
TUNES = [
    FineTune(name="a", base="llama-2-7b", rank=16),
    FineTune(name="b", base="llama-2-7b", rank=16),
    FineTune(name="last", base="llama-2-7b", tuned=8),
    FineTune(name="whole", base="llama-2-7b", tuned=32, losses=NEAR),
]
NAMES = [tune.name for tune in TUNES]
PLACE = parse_place("sim:a100x4")
COSTS = CostModel(replace(PLACE, per_node=2))


def load(num: int = 24, gap_s: float = 0.02) -> list[Arrival]:
    return [Arrival(gap_s * i, 40 + 13 * (i % 7), 12 + i % 5, model=NAMES[i % 4]) for i in range(num)]


def serve(catalogue: Catalogue, hop: Hop, **settings: float) -> tuple[BlockCluster, list[Asked]]:
    cluster = BlockCluster(Kernel(), BlockPrices(COSTS, catalogue), range(4), hop, **settings)
    return cluster, cluster.run(load())


def test_chains_are_cut_where_fine_tunes_differ_and_share_the_rest() -> None:
    made = in_blocks(TUNES)
    assert made.chains["a"] == made.chains["b"]
    first, last = made.chains["a"]
    assert made.chains["last"][0] == first
    assert made.chains["last"][1] != last
    assert not set(made.chains["whole"]) & {first, last}
    assert made.stand_ins == {made.chains["whole"][0]: [(first, 0.005)]}
    assert made.preferred("whole", 0.004) == made.chains["whole"]
    assert made.preferred("whole", 0.005) == (first, made.chains["whole"][1])
    whole = sum(apart(TUNES).blocks[i].nbytes for i in apart(TUNES).chains["a"])
    assert sum(made.blocks[i].nbytes for i in made.chains["a"]) == whole
    assert [len({*c.chains.values()}) for c in (apart(TUNES), parameters_shared(TUNES), made)] == [4, 3, 3]


@pytest.mark.parametrize("hop", [BlockLLM(), BlockLLM(patience=0.0), Pinned()], ids=repr)
@pytest.mark.parametrize("make", [apart, parameters_shared, in_blocks])
def test_every_request_is_answered_and_memory_comes_back(make, hop: Hop) -> None:
    cluster, asked = serve(make(TUNES), hop)
    assert all(a.arrival.at_s < a.first_s < a.finished_s for a in asked)
    assert all(a.computed + 1 == a.known for a in asked)
    for device in cluster.devices:
        held = sum(cluster.catalogue.blocks[site.block].nbytes for site in device.sites)
        assert device.room == pytest.approx(0.9 * 80e9 - held)
        assert not device.guests
        assert not any(site.rows or site.holding for site in device.sites)


def test_one_load_gives_one_run() -> None:
    runs = [[a.finished_s for a in serve(in_blocks(TUNES), BlockLLM(patience=0.0))[1]] for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_chain_begins_on_one_device_and_stays_there() -> None:
    cluster, asked = serve(in_blocks(TUNES), BlockLLM())
    assert all(len({site.device for site in a.at}) == 1 for a in asked)
    assert cluster.carried == {"owner": len(cluster.hops)}
    cluster, _ = serve(in_blocks(TUNES), BlockLLM(patience=0.0))
    assert cluster.carried["transfer"] > 0


def test_stand_ins_are_counted_against_the_budget() -> None:
    catalogue = in_blocks(TUNES)
    cluster, asked = serve(catalogue, BlockLLM(), budget=0.0)
    assert cluster.stood_in == 0
    assert all(a.loss == 0.0 for a in asked)
    cluster, asked = serve(catalogue, BlockLLM(), budget=0.012)
    assert cluster.stood_in > 0
    assert 0.0 < max(a.loss for a in asked) <= 0.012
    assert all(a.loss == 0.0 for a in asked if a.arrival.model != "whole")


def test_a_budget_that_is_spent_leaves_the_own_block() -> None:
    """More than spent, even: a replay that forces a stand-in goes on to its end."""
    own = Candidate(9.0, 1.0, 0.0, 0.0, 0.0, 0.0, True, 0.0)
    other = Candidate(0.0, 1.0, 0.0, 0.0, 0.0, 0.0, False, 0.01)
    assert BlockLLM(patience=0.0).choose([own, other], -0.01) == Choice(0, "owner")


def test_requests_that_no_device_has_room_for_are_an_error_not_a_wait() -> None:
    catalogue = in_blocks(TUNES[:1])
    cluster = BlockCluster(Kernel(), BlockPrices(COSTS, catalogue), range(1), BlockLLM())
    with pytest.raises(CapacityError, match="wait"):
        cluster.run([Arrival(0.0, 10, 200_000, model="a")])


class Moved(Replayed):
    """At one decision, a request that comes back is taken elsewhere, with its keys and values."""

    def choose(self, candidates: Iterable[Candidate], budget: float) -> Choice:
        given = [*candidates]
        if given[0].owner and len(given) > 1 and len(self.noted) == 0:
            self.noted.append((given, budget, Choice(1, "transfer")))
            return Choice(1, "transfer")
        return BlockLLM().choose(given, budget)


def test_keys_and_values_that_move_take_their_time_and_are_held_where_they_are() -> None:
    stayed, moved = serve(in_blocks(TUNES), BlockLLM()), serve(in_blocks(TUNES), Moved())
    assert moved[0].carried["transfer"] == 1
    late = [b.finished_s - a.finished_s for a, b in zip(stayed[1], moved[1], strict=True)]
    assert max(late) > 0.0
    assert sum(len({site.device for site in a.at}) > 1 for a in moved[1]) == 1


def test_the_cheapest_of_three_ways_is_taken() -> None:
    def candidate(wait_s=0.0, transfer_s=0.0, recompute_s=0.0, owner=False, loss=0.0) -> Candidate:
        return Candidate(wait_s, 0.01, 0.0, 0.0, transfer_s, recompute_s, owner, loss)

    busy = candidate(0.5, owner=True)
    hop = BlockLLM()
    assert hop.choose([busy, candidate(0.1, 0.3, 0.6)], 0.0) == Choice(1, "transfer")
    assert hop.choose([busy, candidate(0.1, 0.6, 0.3)], 0.0) == Choice(1, "recompute")
    assert hop.choose([busy, candidate(0.1, 0.6, 0.6)], 0.0) == Choice(0, "owner")
    assert hop.choose([busy, candidate(0.5, 0.1, 9.0)], 0.0) == Choice(0, "owner")
    assert hop.choose([busy, candidate(0.1, 0.1, 9.0, loss=0.01)], 0.0) == Choice(0, "owner")
    assert hop.choose([busy, candidate(0.1, 0.1, 9.0, loss=0.01)], 0.01) == Choice(1, "transfer")
    assert BlockLLM(patience=50.0).choose([busy, candidate()], 0.0) == Choice(0, "owner")


def test_batches_grow_until_a_second_pass_is_as_cheap() -> None:
    hop = BlockLLM()
    assert hop.batch(lambda rows: max(10.0, rows / 32)) == 512
    assert hop.batch(lambda rows: max(10.0, rows / 4)) == 64


BLOCKS = [Stored(10.0, lambda rows: 1.0 + 0.01 * rows)] * 4


def test_the_busiest_block_gets_another_instance_and_the_least_used_gives_way() -> None:
    hop = BlockLLM(kv_share=0.0)
    demands, rooms = [Demand((0, 1), 1.0)], [10.0] * 4
    full = [Instance(0, 0, 9.0, 9, False), Instance(1, 1, 0.0, 2, True), Instance(1, 2, 0.0, 1, True)]
    full.append(Instance(2, 3, 0.0, 0, True))
    added = hop.place(demands, BLOCKS, rooms, full)
    assert [(c.block, c.device, c.add) for c in added] == [(1, 2, False), (0, 2, True)]
    added = hop.place(demands, BLOCKS, [*rooms, 10.0], full)
    assert [(c.block, c.device, c.add) for c in added] == [(0, 4, True)]
    near = hop.place(demands, BLOCKS, [10.0, 20.0, 20.0, 30.0], full)
    assert [(c.block, c.device, c.add) for c in near] == [(0, 1, True)]
    level = [one._replace(queued_s=1.0) for one in full]
    assert hop.place(demands, BLOCKS, rooms, level) == []


def test_chains_begin_whole_and_the_busiest_more_than_once() -> None:
    demands, rooms = [Demand((0, 1), 8.0), Demand((0, 2), 0.5), Demand((3,), 0.5)], [40.0] * 4
    placed = BlockLLM(kv_share=0.0).place(demands, BLOCKS, rooms, ())
    on = [{c.block for c in placed if c.device == d} for d in range(4)]
    assert sum({0, 1} <= blocks for blocks in on) > 1
    assert any({0, 2} <= blocks for blocks in on)
    assert all(c.add for c in placed)
    with pytest.raises(CapacityError, match="room"):
        BlockLLM(kv_share=0.9).place(demands, BLOCKS, rooms, ())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(RangeError):
        BlockLLM(kv_share=1.0)
