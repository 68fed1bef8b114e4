"""Sarathi-Serve: capacity within a latency objective, against prefill-first batching.

The paper's Mistral-7B set-up on one A100, simulated: lognormal lengths with the medians and 90th
percentiles of openchat_sharegpt4 in the paper's table (prompt 1730 and 5696, output 415 and 834), Poisson
arrivals, capacity by bisection under a bound on the 99th percentile of the time between tokens and on the
median scheduling delay (2 s).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from statistics import median

from lightwork.claims import Lab, Measured, claim
from lightwork.claims._random_llama import random_llama
from lightwork.claims._real import serve
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.metrics import request_times
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.prefill_first import PrefillFirst
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.simulate import simulate

Techniques = Sarathi | PrefillFirst

STRICT_S = 0.1
RELAXED_S = 0.5
FALCON_S = 1.0
DELAY_S = 2.0
NUM_REQUESTS = 256
LENGTHS = Lognormal(prompt=1730, output=415, prompt_sigma=0.93, output_sigma=0.55, max_len=8192)
ROUNDS = 5


MISTRAL = Plan(model="shape:mistral-7b", on="sim:a100", prefix_cache=False, max_len=8192)
FALCON = Plan(model="shape:falcon-180b", on="sim:a100x8", tp=4, pp=2, prefix_cache=False)


@cache
def capacity(plan: Plan, scheduler: Techniques, tbt_s: float, seed: int) -> float:
    """The highest Poisson rate, requests/s, at which the objective holds, to a twentieth of itself."""
    low, high = 0.0, 8.0
    while high - low > max(0.05 * low, 1 / 64):
        rate = (low + high) / 2
        load = Poisson(rate=rate, num_requests=NUM_REQUESTS, lengths=LENGTHS)
        run = simulate(replace(plan, use=(scheduler,)), load, seed=seed).summary
        holds = run.tbt_p99_s <= tbt_s and run.queue_p50_s <= DELAY_S
        low, high = (rate, high) if holds else (low, rate)
    return low


def _ratio(plan: Plan, a: Techniques, b: Techniques, tbt_s: float, seed: int) -> Measured:
    ours, theirs = capacity(plan, a, tbt_s, seed), capacity(plan, b, tbt_s, seed)
    note = f"{ours:.2f} against {theirs:.2f} requests/s, p99 TBT {tbt_s:g} s"
    return Measured(ours / max(theirs, 1 / 64), note)


# Accepted between 0.7 and 1.5 times the published ratio: two bounds on one figure.
@claim(
    "sarathi",
    title="capacity over prefill-first, strict objective, Mistral-7B on one A100: high enough",
    paper="up to 2.6x",
    expect=2.6,
    within=0.3,
    bound="at least",
)
def capacity_over_prefill_first(lab: Lab) -> Measured:
    return _ratio(MISTRAL, Sarathi(chunk=512), PrefillFirst(), STRICT_S, lab.seed)


@claim(
    "sarathi",
    title="the same: not too high to be believed",
    paper="up to 2.6x",
    expect=2.6,
    within=0.5,
    bound="at most",
)
def capacity_is_believable(lab: Lab) -> float | Measured:
    return capacity_over_prefill_first(lab)


@claim(
    "sarathi",
    title="capacity over prefill-first, p99 of 1 s, Falcon-180B on 8 A100 (4 tensor x 2 pipeline)",
    paper="up to 6.9x",
    expect=6.9,
    within=0.3,
    bound="at least",
)
def capacity_over_prefill_first_in_a_pipeline(lab: Lab) -> Measured:
    return _ratio(FALCON, Sarathi(chunk=512), PrefillFirst(), FALCON_S, lab.seed)


@claim(
    "sarathi",
    title="chunk 512 over chunk 2048 under the strict objective",
    paper="512 wins when the objective is strict",
    expect=1.0,
    within=0.0,
    bound="at least",
)
def small_chunks_win_when_strict(lab: Lab) -> Measured:
    return _ratio(MISTRAL, Sarathi(chunk=512), Sarathi(chunk=2048), STRICT_S, lab.seed)


@claim(
    "sarathi",
    title="chunk 2048 over chunk 512 under the relaxed objective",
    paper="2048 wins when the objective is relaxed",
    expect=1.0,
    within=0.0,
    bound="at least",
)
def large_chunks_win_when_relaxed(lab: Lab) -> Measured:
    return _ratio(MISTRAL, Sarathi(chunk=2048), Sarathi(chunk=512), RELAXED_S, lab.seed)


@cache
def stall(seed: int) -> tuple[float, float, float]:
    """Served for real: four requests decode, a prompt of 1,500 tokens arrives.

    Returns prefill-first over Sarathi (chunk 256) for the longest time between tokens, Sarathi over
    prefill-first for the prompt's time to first token, and for the time until all is done: medians of
    interleaved rounds.
    """
    rounds = [
        (_stall_once(PrefillFirst(), seed), _stall_once(Sarathi(chunk=256), seed)) for _ in range(ROUNDS)
    ]
    gap = median(slow[0] / ours[0] for slow, ours in rounds)
    ttft = median(ours[1] / slow[1] for slow, ours in rounds)
    total = median(ours[2] / slow[2] for slow, ours in rounds)
    return gap, ttft, total


def _stall_once(scheduler: Techniques, seed: int) -> tuple[float, float, float]:
    """Longest gap of the four, time to first token of the prompt, duration; seconds."""
    plan = Plan(model=random_llama(), use=(scheduler,), prefix_cache=False)
    trace, seqs = serve(plan, [Arrival(0.0, 16, 80)] * 4 + [Arrival(0.2, 1500, 4)], seed)
    times = request_times(trace.spans)
    four = [times[seq.id].tokens_s for seq in seqs[:4]]
    # Only the stall in question: the four also wait for each other's prompts at the start.
    late = times[seqs[4].id].arrived_s
    gap_s = max(b - a for tokens in four for a, b in pairwise(tokens) if b > late)
    prompt = times[seqs[4].id]
    return gap_s, prompt.tokens_s[0] - prompt.arrived_s, max(t[-1] for t in four)


@claim(
    "sarathi",
    title="longest stall of four decodes when 1,500 tokens arrive, prefill-first over chunk 256",
    paper="stall-free; our bar on a CPU",
    expect=4.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def stall_free(lab: Lab) -> Measured:
    gap, _, total = stall(lab.seed)
    return Measured(gap, f"total time {total:.2f}x, n={ROUNDS}")


@claim(
    "sarathi",
    title="time to first token of those 1,500 tokens, chunk 256 over prefill-first",
    paper="our bar on a CPU",
    expect=1.1,
    within=0.0,
    bound="at most",
    mode="real",
)
def stall_free_costs_little(lab: Lab) -> float:
    return stall(lab.seed)[1]
