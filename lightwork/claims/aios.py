"""AIOS: what a system between agents and their model is worth, and that changing places costs no token.

Simulated: agents of six turns, each a reply and a tool, at Llama 8B on one A10 that writes one reply at a
time. The publication's workloads and machine are not told in full: the mean length of replies and the time of
a tool are ours, so that the total time and the mean waiting time in order of arrival are the published 74.2
and 3.0 s; all other figures are predicted. Figures are means over seeds, since a run has only 48 calls.
Without a system agents ask a model that refuses whoever comes while it writes, and wait longer each time that
they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lightwork.agents.aios.memory import Memory
from lightwork.agents.aios.system import AIOS, Agent
from lightwork.agents.chat_model import ChatRequest, Message, Reply
from lightwork.agents.context import Context, Result
from lightwork.agents.engine_model import open_model
from lightwork.claims import Lab, Measured, claim
from lightwork.claims._agents_at_work import Served, Way, Work, at_work
from lightwork.claims._real import serve
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.lru import LRU
from lightwork.memory.residencies.lru_k import LRUK
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.queue_policies import QueuePolicy
from lightwork.runtime.queue_policies.first_come_first_served import FirstComeFirstServed
from lightwork.runtime.queue_policies.round_robin import RoundRobin
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.loads import Arrival
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.context_switch import ContextSwitch
from lightwork.serve.simulate import SyntheticRequests, run_load
from lightwork.serve.simulated import open_simulated

LLAMA = Plan(model="shape:llama-3-8b", on="sim:a10")
AGENTS, SEEDS = 8, 32


def _served(way: Way, seed: int) -> list[Served]:
    return [at_work(way, Work(AGENTS, 6, 28, 5.9, seed + i), LLAMA) for i in range(SEEDS)]


def _totals(way: Way, seed: int) -> float:
    return fmean(served.total_s for served in _served(way, seed))


def _told(way: Way, seed: int) -> str:
    mean_s, p90_s = (fmean(getattr(s, what) for s in _served(way, seed)) for what in ("mean_s", "p90_s"))
    return f"{way} {_totals(way, seed):.1f} s, waits {mean_s:.1f} and {p90_s:.1f} s"


@claim(
    "aios",
    title="total time of 8 agents that ask a busy model again and again, over FIFO",
    paper="152.1 over 74.2 s, mean and 90th percentile of waits 9.8 and 11.0 over 3.0 and 5.0 s; up to 2.1x",
    expect=2.05,
    within=0.3,
)
def without_a_system(lab: Lab) -> Measured:
    note = "; ".join(_told(way, lab.seed) for way in ("none", "fifo", "rr"))
    return Measured(_totals("none", lab.seed) / _totals("fifo", lab.seed), note)


@claim("aios", title="the same", paper="- (our bar 1.8)", expect=1.8, within=0.0, bound="at least")
def without_a_system_bar(lab: Lab) -> float:
    return _totals("none", lab.seed) / _totals("fifo", lab.seed)


@claim("aios", title="total time round robin over FIFO", paper="77.3 over 74.2 s", expect=1.04, within=0.1)
def round_robin_total(lab: Lab) -> float:
    return _totals("rr", lab.seed) / _totals("fifo", lab.seed)


@claim(
    "aios",
    title="90th percentile of waits, FIFO over round robin",
    paper="5.0 over 4.2 s; the order is accepted",
    expect=1.0,
    within=0.0,
    bound="at least",
)
def round_robin_waits(lab: Lab) -> float:
    fifo, rr = (fmean(s.p90_s for s in _served(way, lab.seed)) for way in ("fifo", "rr"))
    return fifo / rr


@claim(
    "aios",
    title="how linear total time is in the number of agents, 250 to 2,000: R squared",
    paper="linear up to 2,000",
    expect=0.99,
    within=0.0,
    bound="at least",
    unit="",
)
def linear(lab: Lab) -> Measured:
    numbers = [250, 500, 1000, 1500, 2000]
    totals = [at_work("fifo", Work(n, 1, 6, 0.5, lab.seed), LLAMA).total_s for n in numbers]
    r = float(np.corrcoef(numbers, totals)[0, 1])
    return Measured(r * r, f"{totals[0]:.0f} to {totals[-1]:.0f} s")


# -- short calls behind long ones

MIXED = [Arrival(0.0, 24, 256)] * 4 + [Arrival(0.0, 24, 12)] * 12
POLICIES: tuple[QueuePolicy, ...] = (FirstComeFirstServed(), RoundRobin(quantum=16))
ROUNDS = 5


def _waits_s(spans: Sequence[Span]) -> tuple[float, float]:
    """The 90th percentile of the time that short calls are in no step, and the time until all have ended."""
    life: dict[str, float] = {}
    for span in spans:
        if span.kind == "arrive":
            life[span.name] = -span.end_s
        elif span.kind == "finish":
            life[span.name] += span.end_s
        elif span.kind == "step" and span.args:
            for id, *_ in span.args["chunks"]:
                life[str(id)] -= span.end_s - span.start_s
    short = [life[str(i)] for i in range(4, len(MIXED))]
    return float(np.percentile(short, 90)), max(s.end_s for s in spans) - min(s.start_s for s in spans)


@cache
def _simulated(seed: int) -> tuple[float, float]:
    """FIFO over round robin: waits; round robin over FIFO: until the end."""
    found = []
    for policy in POLICIES:
        kernel = Kernel(seed=seed, trace=Trace("simulated"))
        engine, _ = open_simulated(replace(LLAMA, use=(ContextSwitch(policy=policy),)), kernel)
        run_load(engine, MIXED, SyntheticRequests(MIXED, 1000, kernel.rng("prompts")))
        found.append(_waits_s(kernel.trace.spans if kernel.trace else ()))
    (fifo, until), (rr, later) = found
    return fifo / rr, later / until


@cache
def _real(seed: int) -> tuple[float, float]:
    """The same of runs on this machine, turn by turn: medians of their ratios."""
    waits, ends = [], []
    for _ in range(ROUNDS):
        plans = [Plan(model="tiny:llama", use=(ContextSwitch(policy=p),)) for p in POLICIES]
        (fifo, until), (rr, later) = (_waits_s(serve(p, MIXED, seed)[0].spans) for p in plans)
        waits.append(fifo / rr)
        ends.append(later / until)
    return median(waits), median(ends)


@claim(
    "aios",
    title="90th percentile of waits of 12 short calls behind 4 long ones, FIFO over round robin: tiny:llama",
    paper="- (our bar 2)",
    expect=2.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def short_behind_long(lab: Lab) -> float:
    return _real(lab.seed)[0]


@claim(
    "aios",
    title="time until all of them have ended, round robin over FIFO",
    paper="- (our bar 1.1)",
    expect=1.1,
    within=0.0,
    bound="at most",
    mode="real",
)
def makespan(lab: Lab) -> float:
    return _real(lab.seed)[1]


@claim(
    "aios",
    title="the same waits, simulated: Llama 8B on an A10",
    paper="- (our bar 2)",
    expect=2.0,
    within=0.0,
    bound="at least",
)
def short_behind_long_simulated(lab: Lab) -> Measured:
    waits, ends = _simulated(lab.seed)
    return Measured(waits, f"time until all have ended {ends:.3f}x")


# -- for real: what changing places does to texts

QUESTIONS = ("hello", "count to ten", "name three colours", "what is a river?")


class _Ask:
    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    async def run(self, context: Context, question: str) -> Result:
        said = (Message("user", question),)
        request = ChatRequest(said, max_tokens=40, temperature=self._temperature, seed=7)
        return Result((await context.ask(request)).text)


def _texts(use: tuple[ContextSwitch, ...], **settings: object) -> tuple[list[str], AIOS]:
    """Of eight agents, four of them greedy, and their system."""
    kernel = Kernel(WallClock())
    model = open_model(Plan(model="tiny:llama", use=use, prefix_cache=False), kernel)
    system = AIOS(kernel, {"": model}, **settings)  # type: ignore[arg-type]
    jobs = [(q, temperature) for temperature in (0.0, 1.0) for q in QUESTIONS]

    async def main() -> list[Result]:
        runs = [system.run(_Ask(how), q, Agent(f"agent {i}")) for i, (q, how) in enumerate(jobs)]
        return await kernel.gather(*runs)

    try:
        return [result.answer for result in kernel.run(main())], system
    finally:
        model.close()


@claim(
    "aios",
    title="replies of 8 agents that change places every 1, 3 and 16 tokens that are those of each alone",
    paper="BLEU and BERTScore 1.0",
    expect=1.0,
    within=0.0,
    mode="real",
    unit="",
)
def fidelity(lab: Lab) -> Measured:
    alone, _ = _texts(())
    policies = [RoundRobin(quantum=quantum) for quantum in (1, 3, 16)]
    served = [_texts((ContextSwitch(policy=policy),))[0] for policy in policies]
    again, system = _texts((), places={"": 1}, policy=RoundRobin(quantum=3))
    same = sum(a == b for texts in served for a, b in zip(texts, alone, strict=True))
    by_text = sum(a == b for a, b in zip(again, alone, strict=True))
    read = sum(call.recomputed for call in system.calls)
    written = sum(
        reply.usage.completion for reply in (c.response for c in system.calls) if isinstance(reply, Reply)
    )
    note = f"from their texts, as remote models allow: {by_text} of 8, {read} tokens read again for {written}"
    return Measured(same / (len(served) * len(alone)), note)


# -- memory


def _hit_ratio(policy: Residency[Any], seed: int) -> float:
    """Of 50 items that are used again and again, and scans of others that are used twice."""
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        memory = Memory(Path(folder), block_bytes=10_000, policy=policy)
        hot = [memory.add("agent", rng.bytes(100)) for _ in range(50)]
        cold = iter([memory.add("agent", rng.bytes(100)) for _ in range(1200)])
        memory.hits = memory.misses = 0
        for _ in range(20):
            for i in rng.integers(50, size=100):
                memory.get("agent", hot[i])
            for _ in range(60):
                memory.get("agent", next(cold))
        return memory.hits / (memory.hits + memory.misses)


@claim(
    "aios",
    title="hits of an agent's memory under scans, LRU-2 less LRU, in points",
    paper="- (our bar 10)",
    expect=10.0,
    within=0.0,
    bound="at least",
    unit="",
)
def memory_hits(lab: Lab) -> Measured:
    lru2, lru = _hit_ratio(LRUK(), lab.seed), _hit_ratio(LRU(), lab.seed)
    return Measured(100 * (lru2 - lru), f"{lru2:.0%} against {lru:.0%}")
