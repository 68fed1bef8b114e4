"""A fit whose rows lie on many ranks: the same parameters on all, real and simulated by the same file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightwork.cluster import CostModel, parse_place
from lightwork.learn.data import bars
from lightwork.learn.ranks import Ranks, fit
from lightwork.learn.shards import parts
from lightwork.learn.sparse import BSC, GSC, MCA
from lightwork.learn.sparse.truncated_em import SparseCoder
from lightwork.parallel.all_reduces import AllReduce
from lightwork.parallel.all_reduces.ring import Ring
from lightwork.parallel.all_reduces.star import Star
from lightwork.parallel.all_reduces.tree import Tree
from lightwork.runtime import Compute, Effect, Kernel, Meta, Price, SimWorld, Trace

SETTINGS: dict[str, Any] = {"n_components": 6, "n_active": 3, "max_iter": 4, "random_state": 0}


def learnt(coder: SparseCoder) -> list[Any]:
    return [coder.components_, coder.prior_, coder.noise_, coder.free_energy_]


@pytest.mark.parametrize("way", [Star(), Tree(), Tree(fan_out=3), Ring()], ids=repr)
@pytest.mark.parametrize("model", [BSC, GSC, MCA])
def test_ranks_learn_what_one_does(way: AllReduce, model: type[SparseCoder]) -> None:
    X, _ = bars(model, 101, 0, size=3)
    alone = model(**SETTINGS).fit(X)
    world = SimWorld(Kernel(), lambda effect, rank: Price(), {}, execute=True)
    for rank in range(5):
        world.launch(rank, fit(rank, 5, model(**SETTINGS), X, way))
    for coder in world.run():
        for ours, theirs in zip(learnt(coder), learnt(alone), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_ranks_without_rows_learn_too() -> None:
    X, _ = bars(BSC, 3, 0, size=3)
    world = SimWorld(Kernel(), lambda effect, rank: Price(), {}, execute=True)
    for rank in range(5):
        world.launch(rank, fit(rank, 5, BSC(**SETTINGS), X, Star()))
    for coder in world.run():
        np.testing.assert_allclose(coder.components_, BSC(**SETTINGS).fit(X).components_, rtol=1e-9)


def test_what_is_sent_does_not_grow_with_the_rows() -> None:
    sent = []
    for rows in (60, 600):
        X, _ = bars(BSC, rows, 0, size=3)
        trace = Trace("simulated")
        costs = CostModel(parse_place("sim:cpux4"))

        def price(effect: Effect, rank: int, costs: CostModel = costs) -> Price:
            return Price() if isinstance(effect, Compute) else costs.price(effect, rank)

        world = SimWorld(Kernel(trace=trace), price, costs.resources())
        settings = SETTINGS | {"n_active": 1}  # so that some rows need more, and are cut
        sample, likes = BSC(**settings).shard(X[:1]), {}
        for rank, mine in enumerate(parts(4, rows)):
            coder = BSC(**settings)
            shard = coder.shard(X[mine])
            map = Ranks(rank, 4, shard, sample, Tree(), num_rows=rows, likes=likes)
            world.launch(rank, coder.fit_over(map, X))
        world.run()
        sizes = [span.bytes for span in trace.spans if span.kind == "send"]
        statistics = 8 * (6 * 9 + 6 * 6 + 1 + 3)  # W, pairs, counts; evidence, rows, squares
        assert set(sizes) == {statistics, 8 * 256}
        assert world.kernel.now() > 0
        sent.append(sum(sizes))
    assert sent[0] == sent[1]


def test_a_simulated_sum_is_zeros() -> None:
    from lightwork.learn.ranks import unpacked
    from lightwork.learn.shards import Sums

    like = Sums({"a": np.ones((2, 3)), "b": np.array(4)})
    found = unpacked(Meta((7,), "float64"), like)
    assert found["a"].shape == (2, 3)
    assert found["b"].dtype == like["b"].dtype
    assert found.nbytes == like.nbytes


@pytest.mark.multiproc
def test_processes_of_torch_learn_what_one_does() -> None:
    torch = pytest.importorskip("torch")
    from lightwork.parallel.processes import run_processes

    X, _ = bars(BSC, 101, 0, size=3)
    alone = BSC(**SETTINGS).fit(X)
    for coder in run_processes(fit, 2, BSC(**SETTINGS), X, Tree(), torch.from_numpy):
        np.testing.assert_allclose(coder.components_, alone.components_, rtol=1e-10)
