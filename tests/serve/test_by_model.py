"""Models that take turns: one of them per step, bounded waiting, no weights served before they are whole."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from itertools import groupby
from typing import Any

import pytest
from engines import UnitCost, expected, next_token, request
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwork.errors import LightworkError, RangeError
from lightwork.memory.kv import KVCache
from lightwork.memory.residencies.lru import LRU
from lightwork.memory.residents import Residents
from lightwork.memory.tiers.host_memory import HostMemory
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.composing import taking_turns
from lightwork.serve.engine import Engine
from lightwork.serve.expert_runner import ExpertRunner
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers.by_model import ByModel
from lightwork.serve.schedulers.fair import Fair
from lightwork.serve.schedulers.fast_switch import FastSwitch
from lightwork.serve.schedulers.prefix_groups import PrefixGroups
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.schedulers.split_fuse import SplitFuse
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated_runner import SimulatedRunner

MODELS = ("", "a", "b", "c", "d", "e")


class Computing(SimulatedRunner):
    """Fails unless the weights in the slot it was told are whole and of the step's model."""

    def __init__(self) -> None:
        super().__init__(UnitCost(), script=next_token)
        self.slots: dict[int, str | None] = {}
        self.slot = -1

    def run(self, step: Step) -> Coroutine[Any, Any, Any]:
        held = self.slots.get(self.slot)
        assert {chunk.seq.request.model for chunk in step.chunks} == {held}
        return super().run(step)

    def compute_from(self, slot: int) -> None:
        self.slot = slot


def make(
    scheduler: Any = None,
    *,
    slots: int = 3,
    prefetch: bool = True,
    copy_s: float = 0.03,
    broken: float = 0.0,
    seed: int = 0,
    max_seqs: int = 128,
    blocks: int = 64,
) -> Engine:
    """Copies take a random time around copy_s, and fail with probability `broken`."""
    kernel, rng, computing = Kernel(trace=Trace("test")), random.Random(seed), Computing()

    async def copy(name: str, slot: int) -> None:
        computing.slots[slot] = None
        await kernel.sleep(2 * copy_s * rng.random())
        if rng.random() < broken:
            raise LightworkError("no such file")
        computing.slots[slot] = name

    residents = Residents(dict.fromkeys(MODELS, 1), slots, LRU())
    runner = ExpertRunner(kernel, computing, residents, copy, computing.compute_from, prefetch=prefetch)
    tier = HostMemory()
    kv = KVCache(blocks, 4, tier=tier, tier_blocks=64)
    limits = Limits(max_len=1000, models=MODELS, max_seqs=max_seqs)
    return Engine(kernel, runner, kv, scheduler or ByModel(), limits=limits, vocab_size=50)


def spans(engine: Engine, kind: str) -> list[Span]:
    assert engine.kernel.trace is not None
    return [span for span in engine.kernel.trace.spans if span.kind == kind]


def residents(engine: Engine) -> Residents:
    assert isinstance(engine.runner, ExpertRunner)
    return engine.runner.residents


def load(num: int, seed: int = 0, models: Sequence[str] = MODELS) -> list[Request]:
    rng = random.Random(seed)
    return [
        request([rng.randrange(50) for _ in range(rng.randrange(1, 20))], 8, model=rng.choice(models))
        for _ in range(num)
    ]


SCHEDULERS = [
    ByModel(),
    ByModel(inner=Sarathi(chunk=16), max_steps=3),
    ByModel(inner=Fair(inner=Sarathi(chunk=16)), max_steps=5),
    ByModel(inner=PrefixGroups(inner=Sarathi(chunk=16))),
    ByModel(inner=SplitFuse(tokens=16)),
    Fair(inner=ByModel(max_steps=4)),
    FastSwitch(inner=ByModel(inner=Sarathi(chunk=16), max_steps=4), every=3, stay=0.3),
]


@settings(max_examples=150, deadline=None)
@given(
    scheduler=st.sampled_from(SCHEDULERS),
    slots=st.integers(1, 6),
    prefetch=st.booleans(),
    copy_s=st.sampled_from([0.0, 0.002, 0.05]),
    num=st.integers(1, 24),
    blocks=st.integers(10, 64),
    max_seqs=st.integers(1, 12),
    gap_s=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 99),
)
def test_every_text_is_that_of_its_model_alone(
    scheduler: Any,
    slots: int,
    prefetch: bool,
    copy_s: float,
    num: int,
    blocks: int,
    max_seqs: int,
    gap_s: float,
    seed: int,
) -> None:
    engine = make(
        scheduler, slots=slots, prefetch=prefetch, copy_s=copy_s, seed=seed, blocks=blocks, max_seqs=max_seqs
    )
    asked = load(num, seed)
    seqs = run_load(engine, [gap_s * i for i in range(num)], asked)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in asked]
    assert max(int(span.args["running"]) for span in spans(engine, "step") if span.args) <= max_seqs
    engine.kv.check()
    assert engine.kv.free == engine.kv.total


def test_weights_that_cannot_be_copied_end_who_needs_them_and_nobody_else() -> None:
    engine = make(broken=0.4, seed=3)
    asked = load(40)
    seqs = run_load(engine, [0.02 * i for i in range(40)], asked)
    assert {seq.finished for seq in seqs} == {"length", "error"}
    for seq, r in zip(seqs, asked, strict=True):
        assert seq.finished == "error" or seq.tokens[seq.prompt_len :] == expected(r)
    assert engine.kv.free == engine.kv.total


def test_what_is_next_is_copied_beside_the_steps_of_this_turn() -> None:
    ahead, late = (make(prefetch=prefetch, copy_s=0.005) for prefetch in (True, False))
    for engine in (ahead, late):
        run_load(engine, [0.0] * 24, load(24))
    copying_s = sum(span.end_s - span.start_s for span in spans(late, "load"))
    hidden_s = late.kernel.now() - ahead.kernel.now()
    assert 0.7 * copying_s < hidden_s < copying_s  # the first copy is before any step
    assert sum(span.end_s - span.start_s for span in spans(late, "switch")) == pytest.approx(copying_s)
    assert residents(ahead).copies == residents(late).copies == len(spans(ahead, "load"))
    overlapping = [
        (load.name, step.name)
        for load in spans(ahead, "load")
        for step in spans(ahead, "step")
        if load.start_s < step.end_s and step.start_s < load.start_s
    ]
    assert overlapping


def test_who_waits_has_a_turn_before_the_others_have_had_two() -> None:
    """Three models that always have work, and a fourth that asks once."""
    engine = make(ByModel(inner=Sarathi(), max_steps=5), max_seqs=16, blocks=1000)
    busy = [request([i], 200, model="abc"[i % 3]) for i in range(12)]
    late = request([9], 3, model="d")
    seqs = run_load(engine, [*[0.0] * 12, 0.1], [*busy, late])
    turns = [span.name for span in spans(engine, "switch")]
    arrived = next(i for i, s in enumerate(spans(engine, "switch")) if s.end_s > seqs[-1].arrived_s)
    assert turns.index("d") - arrived <= 3
    models = [seq.request.model for seq in seqs]
    of = {seq.id: model for seq, model in zip(seqs, models, strict=True)}
    steps = [of[span.args["chunks"][0][0]] for span in spans(engine, "step") if span.args]
    runs = [(model, len([*run])) for model, run in groupby(steps)]
    assert all(length <= 5 for model, length in runs[:-3])
    for i in range(len(runs) - 6):  # round and round
        assert len({model for model, _ in runs[i : i + 3]}) == 3


def test_a_step_of_two_models_is_refused() -> None:
    engine = make(Sarathi())
    seqs = run_load(engine, [0.0, 0.0], [request(model="a"), request(model="b")])
    assert [seq.finished for seq in seqs] == ["error", "error"]


def test_turns_are_put_around_a_scheduler_that_has_none() -> None:
    assert taking_turns(Sarathi(chunk=7)) == ByModel(inner=Sarathi(chunk=7))
    inside = Fair(inner=ByModel(max_steps=2))
    assert taking_turns(inside) is inside
    with pytest.raises(RangeError, match="max_steps=0"):
        ByModel(max_steps=0)


def test_an_unknown_model_is_refused() -> None:
    engine = make()
    with pytest.raises(RangeError, match="no model is called 'z'"):
        engine.submit(request(model="z"))
