"""Sequences change places in the middle of their texts, and no text knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import expected, make_engine, request
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightwork.decode.sampling import Sampling
from lightwork.errors import RangeError
from lightwork.memory.tiers.host_memory import HostMemory
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.queue_policies.first_come_first_served import FirstComeFirstServed
from lightwork.runtime.queue_policies.priority import Priority
from lightwork.runtime.queue_policies.round_robin import RoundRobin
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.engine import Engine
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.context_switch import ContextSwitch
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load


def spans(engine: Engine, kind: str) -> list[Span]:
    assert engine.kernel.trace is not None
    return [span for span in engine.kernel.trace.spans if span.kind == kind]


def order(engine: Engine) -> list[tuple[int, ...]]:
    """Which sequences each step contained."""
    return [tuple(chunk[0] for chunk in step.args["chunks"]) for step in spans(engine, "step") if step.args]


def switches(engine: Engine) -> int:
    steps = order(engine)
    return sum(a != b for a, b in pairwise(steps))


def computed_again(engine: Engine, seqs: Sequence[Seq]) -> int:
    rows = sum(chunk[2] for step in spans(engine, "step") if step.args for chunk in step.args["chunks"])
    return rows - sum(seq.known - 1 for seq in seqs)


def dropped_prefixes(engine: Engine) -> int:
    """Of every sequence that came back after it had given up its KV, the tokens it had had there."""
    admitted: set[str] = set()
    tokens = 0
    for span in spans(engine, "admit"):
        if span.name in admitted and span.args:
            tokens += span.args["known"] - 1 - span.args["cached"]
        admitted.add(span.name)
    return tokens


# -- for real

AGENTS, TOKENS = 8, 20
SAMPLINGS = [Sampling(temperature=0.0), Sampling(temperature=1.0, top_p=0.9, seed=5)]
WAYS: dict[str, tuple[bool, tuple[Any, ...]]] = {
    "kept": (True, ()),
    "swapped": (False, (HostMemory(gb=0.5, parts=True),)),
    "dropped": (False, ()),
}


def conversations(how: Sampling) -> list[Request]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, int(n)).tolist() for n in rng.integers(3, 40, AGENTS)]
    return [Request(prompt=tuple(p), max_tokens=TOKENS, sampling=how) for p in prompts]


def served(folder: Path, how: Sampling, *use: Any) -> tuple[Engine, list[Seq], list[list[int]]]:
    kernel = Kernel(WallClock(), trace=Trace("real: cpu"))
    plan = Plan(model=str(folder), max_len=100, use=use, prefix_cache=False)
    engine, model, _ = open_engine(plan, kernel)
    assert isinstance(engine, Engine)
    seqs = run_load(engine, [0.0] * AGENTS, conversations(how))
    engine.kv.check()
    model.close()
    return engine, seqs, [seq.tokens[seq.prompt_len :] for seq in seqs]


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[..., Path]) -> list[list[list[int]]]:
    """The texts of each sampling, never preempted."""
    return [served(checkpoint("llama"), how)[2] for how in SAMPLINGS]


@pytest.mark.parametrize("quantum", [1, 3, 16])
@pytest.mark.parametrize("how", [0, 1], ids=["greedy", "seeded"])
@pytest.mark.parametrize("way", WAYS)
def test_eight_agents_take_turns_and_write_what_each_writes_alone(
    checkpoint: Callable[..., Path], alone: list[list[list[int]]], way: str, how: int, quantum: int
) -> None:
    keep, tier = WAYS[way]
    turns = ContextSwitch(policy=RoundRobin(quantum=quantum), keep=keep)
    engine, seqs, texts = served(checkpoint("llama"), SAMPLINGS[how], turns, *tier)
    assert texts == alone[how]
    assert switches(engine) >= AGENTS * (TOKENS // quantum - 1)
    again = computed_again(engine, seqs)
    assert again == (dropped_prefixes(engine) if way == "dropped" else 0)
    assert (again > 0) == (way == "dropped")


# -- in virtual time


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (FirstComeFirstServed(), [0, 0, 0, 0, 1, 1, 2, 2, 2]),
        (RoundRobin(quantum=1), [0, 1, 2, 0, 1, 2, 0, 2, 0]),
        (RoundRobin(quantum=2), [0, 0, 1, 1, 2, 2, 0, 0, 2]),
        (Priority(), [2, 2, 2, 0, 0, 0, 0, 1, 1]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("keep", [True, False])
def test_the_policy_says_who_is_in_which_step(policy: Any, steps: list[int], keep: bool) -> None:
    engine = make_engine(ContextSwitch(policy=policy, keep=keep))
    load = [request([i], max_tokens=n, priority=i // 2) for i, n in enumerate([4, 2, 3])]
    run_load(engine, [0.0] * 3, load)
    assert order(engine) == [(i,) for i in steps]


def test_who_is_more_urgent_takes_the_place_at_the_next_token() -> None:
    engine = make_engine(ContextSwitch(policy=Priority()))
    load = [request([1], max_tokens=6), request([2], max_tokens=2, priority=1)]
    run_load(engine, [0.0, 0.0021], load)
    assert order(engine) == [(0,), (0,), (0,), (1,), (1,), (0,), (0,), (0,)]


def test_blocks_are_given_up_only_when_they_are_needed() -> None:
    """Kept, three of them fit; the fourth takes the blocks of the one whose turn is furthest away."""
    load = [request(range(i, i + 8), max_tokens=8) for i in range(4)]
    plenty = make_engine(ContextSwitch(policy=RoundRobin(quantum=2)), blocks=64)
    short = make_engine(ContextSwitch(policy=RoundRobin(quantum=2)), blocks=13, prefix_cache=False)
    for engine in (plenty, short):
        seqs = run_load(engine, [0.0] * 4, load)
        assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in load]
    assert not spans(plenty, "preempt")
    assert spans(short, "preempt")


@settings(max_examples=100, deadline=None)
@example(  # the next needs blocks that two paused ones share
    sizes=[(14, 7), (14, 6), (1, 9), (1, 10), (14, 6)],
    policy=RoundRobin(quantum=0.005, unit="seconds"),
    places=3,
    keep=True,
    blocks=9,
    max_seqs=3,
    cache=True,
    chunk=3,
    ahead_s=1e-4,
)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 14)), min_size=1, max_size=10),
    policy=st.sampled_from(
        [FirstComeFirstServed(), RoundRobin(quantum=1), RoundRobin(quantum=0.005, unit="seconds"), Priority()]
    ),
    places=st.integers(1, 3),
    keep=st.booleans(),
    blocks=st.integers(9, 24),
    max_seqs=st.integers(1, 4),
    cache=st.booleans(),
    chunk=st.sampled_from([3, 64]),
    ahead_s=st.sampled_from([None, 1e-4]),
)
def test_everybody_ends_however_short_memory_is(
    sizes: list[tuple[int, int]],
    policy: Any,
    places: int,
    keep: bool,
    blocks: int,
    max_seqs: int,
    cache: bool,
    chunk: int,
    ahead_s: float | None,
) -> None:
    scheduler = ContextSwitch(inner=Sarathi(chunk=chunk), policy=policy, places=places, keep=keep)
    engine = make_engine(scheduler, blocks=blocks, max_seqs=max_seqs, prefix_cache=cache, ahead_s=ahead_s)
    load = [
        request(range(i % 3, i % 3 + prompt), max_tokens=output, priority=i % 2)
        for i, (prompt, output) in enumerate(sizes)
    ]
    seqs = run_load(engine, [0.004 * i for i in range(len(load))], load)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in load]
    assert max(map(len, order(engine))) <= min(places, max_seqs)
    engine.kv.check()
    assert engine.kv.free == engine.kv.total


def test_who_hangs_up_while_paused_leaves_nothing() -> None:
    engine = make_engine(ContextSwitch(policy=RoundRobin(quantum=1)))
    seqs = [engine.submit(request([i] * 5, max_tokens=20))[0] for i in range(4)]

    async def main() -> None:
        await engine.kernel.sleep(0.05)
        engine.cancel(seqs[1:3])
        await engine.drained()

    serving = engine.kernel.spawn(engine.run())
    engine.kernel.run(main())
    serving.cancel()
    assert [seq.finished for seq in seqs] == ["length", "cancelled", "cancelled", "length"]
    assert engine.kv.free == engine.kv.total


def test_no_places_are_refused() -> None:
    with pytest.raises(RangeError, match="places=0"):
        ContextSwitch(places=0)
