"""What a step takes on devices that share every layer and read their share from disk: simulated by the
strategy that ranks carry out for real (`memory.streamed.rank_pass`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightwork.cluster.devices import Cluster
from lightwork.cluster.pricing import CostModel
from lightwork.memory.residencies import Residency
from lightwork.memory.residents import Residents
from lightwork.memory.streamed import HEAD, Stream, passes, rank_pass
from lightwork.models.spec import ModelSpec
from lightwork.models.work import attention_work, head_work, product_work
from lightwork.parallel.all_reduces import AllReduce
from lightwork.plan.streaming import Streamed
from lightwork.runtime.effects import Compute, Meta, Move, Work
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.simulated import SimWorld

WARM, COUNTED = 2, 3
"""Passes until the windows have reached their course, and those whose mean is taken."""


def predict_ranks(
    spec: ModelSpec,
    cluster: Cluster,
    policy: Residency[Any],
    way: AllReduce,
    *,
    start: int = 0,
    num_rows: int = 1,
    dtype: str = "float32",
) -> Streamed:
    """Simulate steps that follow one another, on all devices of a cluster, which have a memory "disk".

    start, num_rows: tokens that are known, and those of a step. policy: one with a ring. The first device has
    the whole head beside its share; copies and cap_bytes are its.
    """
    hidden = Meta((num_rows, spec.hidden_size), dtype)
    work = _work(spec, cluster.num_devices, start, num_rows, dtype)
    kernel, costs = Kernel(), CostModel(cluster)
    world = SimWorld(kernel, costs.price, costs.resources())
    begins: list[tuple[float, int]] = []

    def launch(rank: int) -> Residents:
        items = _items(spec, rank, policy)
        residents = _residents(spec, cluster.num_devices, items, policy, dtype)
        stream = Stream(residents, rank)

        def use(block: str, slot: int, x: Any) -> Compute:
            if block == HEAD:
                begins.append((kernel.now(), residents.copies))
            return Compute(work[_kind(block)], None, (x,), block)

        def fetch(item: str, slot: int) -> Move:
            return Move(Meta((residents.sizes[item],), "int8"), "disk", "memory")

        one = partial(rank_pass, rank, cluster.num_devices, stream, items, use, way)
        world.launch(rank, passes(stream, fetch, one, [hidden] * (WARM + COUNTED)))
        return residents

    master, *_ = [launch(rank) for rank in range(cluster.num_devices)]
    world.run()
    (begin_s, before), (end_s, after) = begins[WARM - 1], begins[-1]
    return Streamed(
        policy=policy,
        pass_s=(end_s - begin_s) / COUNTED,
        copies=(after - before) / COUNTED,
        cap_bytes=master.cap_bytes,
    )


def _items(spec: ModelSpec, rank: int, policy: Residency[Any]) -> dict[str, tuple[str, ...]]:
    """What is copied as one, with its blocks, in the order of use."""
    assert policy.ring is not None, "only a policy that streams has a pass to predict"
    pairs = [(f"attention {i}", f"mlp {i}") for i in range(spec.num_layers)]
    if policy.ring.layers:
        found: dict[str, tuple[str, ...]] = {f"layer {i}": pair for i, pair in enumerate(pairs)}
    else:
        found = {block: (block,) for pair in pairs for block in pair}
    return found if rank else found | {HEAD: (HEAD,)}


def _residents(
    spec: ModelSpec, n: int, items: Mapping[str, Sequence[str]], policy: Residency[Any], dtype: str
) -> Residents:
    assert policy.ring is not None
    numbers = {
        "attention": spec.attention_params // n,
        "mlp": spec.mlp_params() // spec.num_layers // n,
        HEAD: spec.vocab_size * spec.hidden_size,
    }
    sizes = {
        item: sum(Meta((numbers[_kind(block)],), dtype).nbytes for block in blocks)
        for item, blocks in items.items()
    }
    return Residents(sizes, min(policy.ring.slots, len(sizes)) * max(sizes.values()), policy, [*sizes])


def _kind(block: str) -> str:
    return block.partition(" ")[0]


def _work(spec: ModelSpec, n: int, start: int, num_rows: int, dtype: str) -> Mapping[str, Sequence[Work]]:
    """Of a rank's share of a block, by its kind."""
    one = replace(spec, num_layers=1, moe=frozenset({0} if spec.moe else ()), windowed=frozenset())
    products = product_work(one, num_rows, dtype=dtype, tp=n)
    seen = attention_work(one, [(start, num_rows)], dtype=dtype, tp=n)
    return {
        "attention": (*products["qkv"], *seen, *products["out"]),
        "mlp": (*products["up"], *products["down"]),
        HEAD: (head_work(spec, 1, dtype=dtype),),
    }
