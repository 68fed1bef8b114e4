"""The engines of a plan on the virtual clock, priced for a place like sim:h100x8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import count
from typing import Any, NamedTuple

from lightwork.cluster import Cluster, CostModel, parse_place
from lightwork.decode.proposers import Drafter
from lightwork.errors import CapacityError, SpecError
from lightwork.memory.residents import Residents
from lightwork.models import read_shape
from lightwork.models.spec import ModelSpec
from lightwork.runtime.kernel import Kernel
from lightwork.serve.composing import resident_setting
from lightwork.serve.compositions import Composition, Turns
from lightwork.serve.cost import ClusterCost, predicted
from lightwork.serve.engine import Engine
from lightwork.serve.expert_runner import ExpertRunner, copy_simulated
from lightwork.serve.fleet import Fleet
from lightwork.serve.forming import Forming, Priced
from lightwork.serve.plan import (
    BLOCK_SIZE,
    Plan,
    Setting,
    adapters_setting,
    context,
    divided,
    kv_blocks,
    make_engine,
    make_kv,
    of_engines,
    overlapped,
    tier_blocks,
    training_setting,
)
from lightwork.serve.routers import Router, Seat
from lightwork.serve.runner import Runner
from lightwork.serve.simulated_runner import Script, SimulatedRunner, dummy_token
from lightwork.serve.training import Training

MOST_BLOCKS = 1 << 22


class _Placed(NamedTuple):
    """A seat on devices rank, rank + 1, ..."""

    rank: int
    tp: int
    pp: int


def open_simulated(
    plan: Plan,
    kernel: Kernel,
    *,
    cluster: Cluster | None = None,
    ids: Iterator[int] | None = None,
    script: Script = dummy_token,
    **parts: Any,
) -> tuple[Engine | Fleet, list[Setting]]:
    """The engine that a plan describes, or the engines behind its router.

    cluster: other than the plan's place says. ids: of sequences. script: what they say. parts: what else
    `Engine` takes. Raises SpecError for an unknown place or model, CapacityError if the model does not fit
    there.
    """
    chosen = plan.techniques()
    spec, cluster = read_shape(plan.model), cluster or parse_place(plan.on)
    router: Router[object] | None = chosen.get("router")
    adapters = {one.name: one for one in chosen["adapters"].read(spec)} if "adapters" in chosen else {}
    seats = router.seats() if router is not None else [Seat()]
    placed = _place(plan, spec, cluster, seats)
    dtype, longest = _dtype(cluster), context(plan, spec)
    price = partial(ClusterCost, spec, CostModel(cluster), dtype=dtype, adapters=adapters)
    settings = [Setting("dtype", dtype, "the widest type with fast matrix units"), longest]
    settings += [adapters_setting([*adapters.values()])] if adapters else []
    if "tuning" in chosen:
        apart = price(tp=placed[0].tp, pp=placed[0].pp)  # what is predicted is not spent
        beside, trained = _train(chosen["tuning"], plan.model, apart, int(longest.value))
        parts |= beside
        settings.append(trained)
    parts |= {"ids": ids or count()}
    link_s = _link_s(spec, cluster, dtype, min(seat.tp for seat in placed))
    engines, of_each = [], []
    for i, seat in enumerate(placed):
        name = f"engine {i}" if router is not None else "engine"
        cost = price(tp=seat.tp, pp=seat.pp)
        own = dict(parts)
        if "proposer" in chosen and "predict" not in parts:
            own["predict"] = predicted(price(tp=seat.tp, pp=seat.pp))
            own["forming"] = partial(_priced, cluster, dtype)
        engine, told = _open(
            plan, kernel, cost, seat, link_s, int(longest.value), name=name, script=script, **own
        )
        engines.append(engine)
        of_each.append([*_sizes_told(plan, seats[i], seat), *told])
    settings += of_engines(of_each)
    return (Fleet(engines, router) if router is not None else engines[0]), settings


def _open(
    plan: Plan,
    kernel: Kernel,
    cost: ClusterCost,
    seat: _Placed,
    link_s: Callable[[int, int, int], float],
    max_len: int,
    *,
    name: str,
    script: Script,
    **parts: Any,
) -> tuple[Engine, list[Setting]]:
    """One engine."""
    spec, cluster = cost.spec, cost.costs.cluster
    composition: Composition | None = plan.techniques().get("composition")
    block_bytes = spec.kv_bytes_per_token(cost.dtype) * BLOCK_SIZE
    blocks = _blocks(plan, spec, cost, max_len, composition)
    kv = make_kv(plan, min(int(blocks.value), MOST_BLOCKS), BLOCK_SIZE, tier_blocks(plan, block_bytes))
    runner: Runner = SimulatedRunner(
        cost,
        depth=seat.pp,
        ahead_s=cost.step_s if plan.depth > 1 else None,
        script=script,
        rank=seat.rank,
        link_s=link_s,
        host_s=_host_s(spec, cluster, block_bytes, seat),
        kv=kv if cluster.device.unit.reads_once else None,
    )
    told, names = [blocks], [*cost.adapters]
    if composition is not None:
        turns, names = composition.turns(), composition.names()
        assert turns is not None, "a plan refuses others"
        residents = _residents(composition, turns, cost, int(blocks.value) * block_bytes)
        copy = copy_simulated(partial(_weights_s, cluster, residents, seat))
        runner = ExpertRunner(kernel, runner, residents, copy, prefetch=turns.prefetch, name=name)
        told.append(resident_setting(residents, "beside the KV"))
    engine = make_engine(plan, kernel, kv, runner, max_len, spec.vocab_size, names, name=name, **parts)
    return engine, [*told, *divided(plan, kv), *overlapped(plan)]


def _priced(cluster: Cluster, dtype: str, drafter: Drafter) -> Forming:
    """What drafts take where a drafter's model has a device like the target's first."""

    def of(model: str) -> ClusterCost:
        return ClusterCost(read_shape(model), CostModel(cluster), dtype=dtype)

    return Priced(drafter.effort, cache(of))


def _train(tuning: Any, model: str, cost: ClusterCost, max_len: int) -> tuple[dict[str, Any], Setting]:
    """What an engine takes that trains. tuning: a `Tuning`."""
    lengths = tuning.lengths(model, max_len)
    training = Training(lengths, cost.spec.num_layers)
    beside = {"training": training, "predict": predicted(cost)}
    return beside, training_setting(tuning, lengths)


def _dtype(cluster: Cluster) -> str:
    """The widest that is fast there."""
    rates = cluster.device.unit.rates
    fast = (dtype for dtype in ("bfloat16", "float16") if f"matmul/{dtype}" in rates)
    return "float32" if cluster.device.name == "cpu" else next(fast, "float32")


def _place(plan: Plan, spec: ModelSpec, cluster: Cluster, seats: Sequence[Seat]) -> list[_Placed]:
    """One seat after the other, on consecutive devices."""
    placed, rank = [], 0
    for seat in seats:
        tp, pp = _sizes(plan, seat, spec, cluster, cluster.num_devices // len(seats))
        placed.append(_Placed(rank, tp, pp))
        rank += tp * pp
    if rank > cluster.num_devices:
        raise CapacityError(
            f"{len(seats)} engines take {rank} devices",
            expected=f"at most the {cluster.num_devices} of {plan.on}",
            fix="fewer or smaller engines",
        )
    return placed


def _sizes(plan: Plan, seat: Seat, spec: ModelSpec, cluster: Cluster, devices: int) -> tuple[int, int]:
    """Tensor-parallel ranks and pipeline stages. Raises SpecError if there are not so many devices."""
    most = max(1, min(cluster.per_node, devices))
    tp = seat.tp or plan.tp or next(n for n in range(most, 0, -1) if spec.num_kv_heads % n == 0)
    pp = seat.pp or plan.pp or min(spec.num_layers, max(1, devices // tp))
    most = min(cluster.per_node, cluster.num_devices)
    if tp > most or tp * pp > cluster.num_devices or pp > spec.num_layers or min(tp, pp) < 1:
        raise SpecError(
            f"{tp} tensor-parallel ranks times {pp} stages do not fit on {plan.on}",
            expected=f"at most {most} ranks, which share a node, and {cluster.num_devices} devices",
            fix="fewer ranks, more stages; or leave tp and pp out",
        )
    return tp, pp


def _blocks(
    plan: Plan, spec: ModelSpec, cost: ClusterCost, max_len: int, composition: Composition | None
) -> Setting:
    if plan.kv_bytes is not None or composition is not None:
        return kv_blocks(plan, spec, cost.dtype, max_len, int(cost.memory_bytes))
    blocks = cost.kv_tokens() // BLOCK_SIZE
    return Setting("kv_blocks", str(blocks), "what the weights leave of 90 % of the memory")


def _residents(composition: Composition, turns: Turns, cost: ClusterCost, kv_bytes: int) -> Residents:
    """Experts behind one engine: all in host memory, some in what the KV leaves of the devices' own.

    Raises CapacityError if either is too small.
    """
    device, devices = cost.costs.cluster.device, cost.tp * cost.pp
    sizes = dict.fromkeys(["", *composition.names()], cost.weights_bytes)
    host_bytes = device.memory("host").bytes * devices
    if len(sizes) * cost.weights_bytes > host_bytes:
        raise CapacityError(
            f"{len(sizes)} models take {len(sizes) * cost.weights_bytes / 1e9:.0f} GB",
            expected=f"at most {host_bytes / 1e9:.0f} GB, the host memory of {devices} devices",
            fix="fewer experts, or more devices",
        )
    free_bytes = cost.memory_bytes - kv_bytes
    cap_bytes = free_bytes if turns.gb is None else turns.gb * 1e9
    if cap_bytes > free_bytes:
        raise CapacityError(
            f"gb={turns.gb} for experts beside {kv_bytes / 1e9:.1f} GB of KV",
            expected=f"at most {free_bytes / 1e9:.1f} GB on {devices} devices",
            fix="lower gb or kv_memory",
        )
    return Residents(sizes, int(cap_bytes), turns.residency)


def _weights_s(cluster: Cluster, residents: Residents, seat: _Placed, name: str) -> float:
    """Seconds that weights take from host memory, each device its part."""
    host = cluster.device.memory("host")
    return host.latency_s + residents.sizes[name] / (seat.tp * seat.pp) / host.read_bytes_per_s


def _link_s(spec: ModelSpec, cluster: Cluster, dtype: str, lanes: int) -> Callable[[int, int, int], float]:
    """Seconds that the KV of so many tokens takes between the engines of two devices, each rank its heads."""
    per_token = spec.kv_bytes_per_token(dtype)

    def seconds(src: int, dst: int, num_tokens: int) -> float:
        link = cluster.link(src, dst)
        return link.latency_s + num_tokens * per_token / lanes / link.bytes_per_s

    return seconds


def _host_s(
    spec: ModelSpec, cluster: Cluster, block_bytes: int, seat: _Placed
) -> Callable[[int, int], float]:
    """Seconds that blocks take to host memory or back, each device its layers and heads.

    A piece is a copy of keys and one of values in every layer, each started by the host.
    """

    def seconds(copies: int, blocks: int) -> float:
        host = cluster.device.memory("host")
        started = copies * 2 * -(-spec.num_layers // seat.pp)
        return started * host.latency_s + blocks * block_bytes / (seat.tp * seat.pp) / host.write_bytes_per_s

    return seconds


def _sizes_told(plan: Plan, seat: Seat, placed: _Placed) -> list[Setting]:
    tp = "as asked" if seat.tp or plan.tp else "devices of a node that divide the key-value heads"
    pp = "as asked" if seat.pp or plan.pp else "stages over the remaining devices"
    return [Setting("tp", str(placed.tp), tp), Setting("pp", str(placed.pp), pp)]
