"""The publication's cluster and a population of fine-tunes, for BlockLLM's simulated claims.

Twelve A100s of 80 GB in servers of 2, 2, 4 and 4, 100 Gbit/s between servers at the share that presets reach.
Applications of three bases, as many as there is memory for if each has a whole model, popularity as 1/rank in
an order drawn once; lengths of chats as FastSwitch's claims have them. How similar fine-tunes stay to their
base is assumed: the first three quarters of a whole fine-tune's layers lose 0.005 each (what the built-in
model's probes say of lightly tuned blocks, doubled), the last is never equivalent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from lightwork.cluster import CostModel, parse_place
from lightwork.models.presets import preset
from lightwork.runtime.kernel import Kernel
from lightwork.serve.block_cluster import BlockCluster
from lightwork.serve.block_prices import BlockPrices
from lightwork.serve.catalogue import Catalogue, FineTune, apart, in_blocks, parameters_shared
from lightwork.serve.hops import Candidate, Carry, Change, Choice, Demand, Hop, Instance, Stored
from lightwork.serve.hops.block_llm import BlockLLM
from lightwork.serve.hops.pinned import Pinned
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival
from lightwork.serve.loads.poisson import Poisson

RANKS = (0, 1, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)
"""Servers of 2, 2, 4 and 4 among servers of four."""
LOSSES = (0.005, 0.005, 0.005, None)
BUDGET = 0.02
CHAT = Lognormal(prompt=101, prompt_sigma=1.335, output=257, output_sigma=0.674, max_len=4000)
RATE, NUM_REQUESTS = 20.0, 400
BASES = {"llama-2-7b": (7, 2, 3), "llama-3-8b": (6, 0, 2), "llama-2-13b": (5, 1, 2)}
"""Adapters, fine-tunes of the last quarter of the layers, and of all layers."""


@dataclass(frozen=True, slots=True)
class Served:
    """95th percentile of the latency; seconds that devices were at work, all together; of all that time."""

    p95_s: float
    busy_s: float
    share: float


def costs() -> CostModel:
    place = parse_place("sim:a100x16")
    assert place.outer is not None
    reached = 0.88  # of the line rate, as the preset has it for its own network
    return CostModel(replace(place, per_node=4, outer=replace(place.outer, bytes_per_s=reached * 100e9 / 8)))


def population() -> list[FineTune]:
    tunes = []
    for base, numbers in BASES.items():
        layers = preset(base).num_layers
        adapters, last, whole = numbers
        tunes += [FineTune(name="", base=base, rank=16)] * adapters
        tunes += [FineTune(name="", base=base, tuned=layers // 4)] * last
        tunes += [FineTune(name="", base=base, tuned=layers, losses=LOSSES)] * whole
    return [replace(tune, name=f"{tune.base} {i}") for i, tune in enumerate(tunes)]


def popularity(seed: int) -> dict[str, float]:
    tunes = population()
    ranks = np.random.default_rng(seed).permutation(len(tunes)) + 1
    return {tune.name: 1.0 / int(rank) for tune, rank in zip(tunes, ranks, strict=True)}


def load(shares: Mapping[str, float], seed: int) -> list[Arrival]:
    rng = np.random.default_rng(seed)
    arrivals = Poisson(rate=RATE, num_requests=NUM_REQUESTS, lengths=CHAT).arrivals(rng)
    weights = np.array([*shares.values()])
    asked = rng.choice(len(shares), NUM_REQUESTS, p=weights / weights.sum())
    names = [*shares]
    return [arrival._replace(model=names[i]) for arrival, i in zip(arrivals, asked, strict=True)]


MAKES = {"apart": apart, "shared": parameters_shared, "blocks": in_blocks}


@cache
def served(make: str, one_model: bool, seed: int) -> Served:
    """apart: a model for each application; shared: one for adapters of one base; blocks: BlockLLM."""
    tunes = population()
    shares = popularity(seed)
    if one_model:
        tunes = [FineTune(name="only", base="llama-2-7b")]
        shares = {"only": 1.0}
    hop: Hop = BlockLLM() if make == "blocks" else Pinned()
    catalogue: Catalogue = MAKES[make](tunes)
    cluster = BlockCluster(Kernel(), BlockPrices(costs(), catalogue), RANKS, hop, budget=BUDGET)
    asked = cluster.run(load(shares, seed))
    end_s = max(request.finished_s for request in asked)
    busy_s = sum(device.compute.busy_s for device in cluster.devices)
    return Served(
        p95_s=float(np.percentile([request.latency_s for request in asked], 95)),
        busy_s=busy_s,
        share=busy_s / len(RANKS) / end_s,
    )


# -- what an oracle would have done

FEW = [FineTune(name=str(i), base="llama-2-7b", rank=16) for i in range(2)] + [
    FineTune(name="2", base="llama-2-7b", tuned=8),
    FineTune(name="3", base="llama-2-7b", tuned=32, losses=LOSSES),
]
SAMPLED, SLACK_S = 40, 1e-3
"""Decisions that are replayed; ends within this of each other are as good."""


class Replayed:
    """BlockLLM, which notes what it is given for requests that come back, and what the cheapest way seems to
    be; at one of these decisions another way is taken than it does."""

    def __init__(self, number: int = -1, way: Choice | None = None) -> None:
        self.inner, self.number, self.way = BlockLLM(), number, way
        self.noted: list[tuple[list[Candidate], float, Choice]] = []

    def choose(self, candidates: Iterable[Candidate], budget: float) -> Choice:
        given = [*candidates]
        chosen = self.inner.choose(given, budget)
        if given[0].owner:
            if self.way is not None and len(self.noted) == self.number:
                chosen = self.way
            self.noted.append((given, budget, replace(self.inner, patience=0.0).choose(given, budget)))
        return chosen

    def batch(self, seconds: Callable[[int], float]) -> int:
        return self.inner.batch(seconds)

    def place(
        self,
        demands: Sequence[Demand],
        blocks: Sequence[Stored],
        rooms: Sequence[float],
        instances: Sequence[Instance],
    ) -> list[Change]:
        return self.inner.place(demands, blocks, rooms, instances)


def _ends(hop: Replayed) -> list[float]:
    """When the passes ended that decisions led to."""
    arrivals = [Arrival(0.005 * i, 40 + 13 * (i % 7), 10 + i % 5, model=str(i % 4)) for i in range(32)]
    prices = BlockPrices(costs(), in_blocks(FEW))
    cluster = BlockCluster(Kernel(), prices, RANKS[:4], hop, budget=BUDGET)
    cluster.run(arrivals)
    return [request.passed_s[number] for request, number in cluster.hops]


def as_the_oracle(seed: int) -> tuple[int, int]:
    """Of decisions, half sampled where staying seems cheapest and half where leaving does: those where the
    pass would have ended as soon by the way that seems cheapest as by any other; and all of them.

    Every way is tried by running the whole load again, with all other decisions as the technique takes them.
    """
    first = Replayed()
    _ends(first)
    stay = [n for n, (given, _, way) in enumerate(first.noted) if len(given) > 1 and way.carry == "owner"]
    leave = [n for n, (_, _, way) in enumerate(first.noted) if way.carry != "owner"]
    rng, right = np.random.default_rng(seed), 0
    sampled = [rng.choice(some, SAMPLED // 2, replace=False) for some in (stay, leave)]
    for number in np.concatenate(sampled).tolist():
        given, budget, chosen = first.noted[number]
        ends = {way: _ends(Replayed(number, way))[number] for way in _ways(given, budget)}
        right += ends[chosen] <= min(ends.values()) + SLACK_S
    return right, SAMPLED


def _ways(given: Sequence[Candidate], budget: float) -> list[Choice]:
    """The owner, or at another instance within the budget: a copy, or computing again."""
    carries: tuple[Carry, ...] = ("transfer", "recompute")
    others = [i for i, c in enumerate(given) if not c.owner and (not c.loss or c.loss <= budget)]
    return [Choice(0, "owner")] + [Choice(i, carry) for i, carry in product(others, carries)]
