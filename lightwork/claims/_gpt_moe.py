"""GPT of experts on A100s, four to a node, decoding in simulation: tokens that come home, and that stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lightwork.cluster import CostModel, parse_place
from lightwork.cluster.devices import Cluster
from lightwork.models.routing import RoutingTrace
from lightwork.models.spec import ModelSpec
from lightwork.parallel.expert_dispatch import ExpertDispatch
from lightwork.parallel.expert_placement import ExpertPlacement
from lightwork.parallel.traced_shard import Decoding, Simulated, simulate
from lightwork.plan.place_experts import distances
from lightwork.runtime.effects import DTYPE_BYTES

WIDTH, PER_NODE = 1024, 4


def gpt_moe(num_experts: int, num_layers: int) -> ModelSpec:
    """As wide as the GPT of 24 layers and 350 million parameters, all MLPs being experts."""
    return ModelSpec(
        family="gpt2",
        vocab_size=50_257,
        hidden_size=WIDTH,
        num_layers=num_layers,
        num_heads=16,
        num_kv_heads=16,
        head_size=64,
        ffn_size=4096,
        max_len=2048,
        gated=False,
        tied=True,
        num_experts=num_experts,
        experts_per_token=1,
        moe=frozenset(range(num_layers)),
    )


@dataclass(frozen=True, slots=True)
class Both:
    """Tokens that come home, from experts in order, and that stay, by placed ones.

    local: share of steps that stay on a rank. expected: the ratio of times in all-to-alls if all others went
    to all ranks alike. rank_gb: what a GPU has to hold, coming home and staying.
    """

    home: Simulated
    stay: Simulated
    local: float
    expected: float
    rank_gb: tuple[float, float]

    @property
    def exchanging(self) -> float:
        """Time of all-to-alls, staying over coming home."""
        return self.stay.all_to_all_s / self.home.all_to_all_s

    @property
    def speedup(self) -> float:
        return self.home.seconds / self.stay.seconds


def on_a100s(
    spec: ModelSpec, trace: RoutingTrace, placement: ExpertPlacement, num_seqs: int, context: int
) -> Both:
    """Steps of as many tokens as sequences, by this trace: home with experts in order, staying as placed."""
    shape = len(trace.layers), trace.num_experts, placement.num_ranks
    home = ExpertDispatch(placement=ExpertPlacement.in_order(*shape), return_home=True)
    stay = ExpertDispatch(placement=placement)
    num_steps = len(trace) // num_seqs
    job = Decoding(spec=spec, trace=trace, num_seqs=num_seqs, num_steps=num_steps, context=context)
    costs, local, n = CostModel(_nodes(placement.num_ranks)), placement.local_fraction(trace), shape[2]

    def exchange_s(crossing: float) -> float:
        """If such a share of rows left their rank, to all others alike."""
        row_bytes = WIDTH * DTYPE_BYTES[job.dtype]
        return costs.all_to_all_seconds(
            range(n), np.full((n, n), num_seqs / n * row_bytes * crossing / (n - 1))
        )

    return Both(
        simulate(job, home, costs),
        simulate(job, stay, costs),
        local,
        exchange_s(1 - local) / (2 * exchange_s(1 - 1 / n)),
        (job.rank_bytes(home) / 1e9, job.rank_bytes(stay) / 1e9),
    )


def _nodes(num_ranks: int) -> Cluster:
    return replace(parse_place(f"sim:a100x{num_ranks}"), per_node=PER_NODE)


def between(num_ranks: int) -> NDArray[np.float64]:
    """What ways between these GPUs cost: those between nodes as much more as their link is slower."""
    cluster = _nodes(num_ranks)
    assert cluster.inner is not None
    assert cluster.outer is not None
    return distances(num_ranks, PER_NODE, cluster.inner.bytes_per_s / cluster.outer.bytes_per_s)
