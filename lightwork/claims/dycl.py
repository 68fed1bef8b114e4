"""DyCL: dynamic networks split at their branches, beside eager, torch.jit.trace and torch.compile.

The zoo of compile/zoo.py instead of the publication's networks, on this CPU. A network counts as
compiled if all of its outputs equal eager's on 200 inputs, alone and in one batch that parts, and both
sides of every branch of its source were taken (of an unrolled one, in any of its copies). The publication's
speedups are ranges over its networks and two devices; ours is judged by its smallest one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

import torch
from torch import Tensor, nn

from lightwork.claims import Lab, Measured, claim
from lightwork.compile import split
from lightwork.compile.zoo import ZOO, LayerSkip, inputs, network
from lightwork.runtime.clock import WallClock

SAMPLES, ROUNDS = 200, 9
SEED_OF_WEIGHTS = 3

Forward = Callable[[Tensor], Tensor]


def _equal(ours: Sequence[Tensor], eager: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, eager, strict=True))


def _eager(module: Forward | nn.Module, samples: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [module(x) for x in samples]


def _traced(module: nn.Module, example: Tensor) -> Forward:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        forward: Forward = torch.jit.freeze(traced)
    return forward


@claim(
    "dycl",
    title="dynamic networks compiled, all outputs equal to eager",
    paper="100% (abstract)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def compiled(lab: Lab) -> Measured:
    """The share of the zoo. The note says in how many networks torch.jit.trace is wrong somewhere."""
    good = wrong = 0
    samples = inputs(SAMPLES, lab.seed + 1)
    for kind in ZOO:
        module = network(kind, SEED_OF_WEIGHTS)
        host, eager = split(module), _eager(module, samples)
        alone, together = [host(x) for x in samples], host.batch([(x,) for x in samples])
        ways = host.coverage()
        covered = {(w.place, w.outcome) for w in ways} == {(w.place, w.outcome) for w in ways if w.times}
        good += _equal(alone, eager) and _equal(together, eager) and covered
        traced = _traced(module, samples[0])
        wrong += not all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)
            for a, b in zip(_eager(traced, samples), eager, strict=True)
        )
    return Measured(good / len(ZOO), f"{len(ZOO)} networks; torch.jit.trace is wrong in {wrong}")


def _seconds(forward: Forward, samples: Sequence[Tensor]) -> float:
    clock = WallClock()
    begun = clock.now()
    with torch.no_grad():
        for x in samples:
            forward(x)
    return clock.now() - begun


def _speedups(forwards: Sequence[Forward], samples: Sequence[Tensor]) -> list[float]:
    """How many times as fast as the first each is: medians of interleaved rounds, two to warm up before."""
    rounds = [[_seconds(f, samples) for f in forwards] for _ in range(ROUNDS + 2)][2:]
    return [median(r[0] / r[i] for r in rounds) for i in range(len(forwards))]


@cache
def _over_eager(seed: int) -> dict[str, float]:
    samples = inputs(SAMPLES, seed + 1)
    found = {}
    for kind in ZOO:
        module = network(kind, SEED_OF_WEIGHTS)
        found[kind.__name__] = _speedups([module, split(module)], samples)[1]
    return found


@claim(
    "dycl",
    title="least speedup over eager among the networks",
    paper="1.12x to 20.21x (abstract)",
    expect=1.12,
    within=0.0,
    bound="at least",
    mode="real",
    unit="x",
)
def least_speedup(lab: Lab) -> Measured:
    """One sample at a time. The note names each network."""
    found = _over_eager(lab.seed)
    return Measured(min(found.values()), ", ".join(f"{name} {value:.2f}" for name, value in found.items()))


@claim(
    "dycl",
    title="speed over torch.compile, eight gated blocks",
    paper="faster than the frameworks (abstract)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
    unit="x",
)
def over_torch_compile(lab: Lab) -> Measured:
    """The peer that is right too, by graph breaks."""
    samples = inputs(SAMPLES, lab.seed + 1)
    module = network(LayerSkip, SEED_OF_WEIGHTS)
    eager = _eager(module, samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer: Forward = torch.compile(network(LayerSkip, SEED_OF_WEIGHTS))
        equal = _equal([y for x in samples for y in _eager(peer, [x])], eager)
        _, theirs, ours = _speedups([module, peer, split(module)], samples)
    return Measured(
        ours / theirs, f"torch.compile {theirs:.2f}x eager, outputs {'equal' if equal else 'DIFFER'}"
    )
