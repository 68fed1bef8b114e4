"""The next step is formed while one computes: the same texts and reports, one row too many at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import expected, make_engine, request
from test_engine import SCHEDULERS, Sink, assert_clean, outputs, steps_of

from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.sampling import Pick, Sampling
from lightwork.errors import LightworkError, SpecError
from lightwork.memory.layouts.slots import Slots
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.routers.prefill_decode import PrefillDecode
from lightwork.serve.schedulers import Scheduler, Step
from lightwork.serve.schedulers.fast_switch import FastSwitch
from lightwork.serve.schedulers.microbatches import Microbatches
from lightwork.serve.schedulers.nano_flow import NanoFlow
from lightwork.serve.schedulers.prefix_groups import PrefixGroups
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.schedulers.split_fuse import SplitFuse
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated import open_simulated

AHEAD_S = 4e-4
"""Of every step's time, a millisecond a row, so much is the host's."""


def rows(engine: Engine) -> int:
    return sum(chunk[2] for step in steps_of(engine) for chunk in step)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
def test_who_is_preempted_in_flight_goes_on_as_if_it_had_not_been(scheduler: Scheduler[Any]) -> None:
    requests = [request([i, i + 1, i + 2], max_tokens=30) for i in range(6)]
    engine = make_engine(scheduler, blocks=12, ahead_s=AHEAD_S)
    seqs = run_load(engine, [0.0] * 6, requests)
    alone = scheduler in (Sarathi(chunk=1), SplitFuse(tokens=1))  # never admits while one decodes
    foreseen = isinstance(scheduler, PrefixGroups | NanoFlow)  # never admits more than will fit
    assert (sum(seq.num_preempted for seq in seqs) > 0) != (alone or foreseen)
    assert outputs(seqs) == [expected(r) for r in requests]
    assert_clean(engine)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
def test_every_scheduler_runs_ahead_in_slots(scheduler: Scheduler[Any]) -> None:
    requests = [request(range(i, i + 3 * i + 1), max_tokens=1 + 5 * i) for i in range(8)]
    engine = make_engine(scheduler, blocks=47, layout=Slots(max_seqs=3), ahead_s=AHEAD_S)
    seqs = run_load(engine, [0.004 * i for i in range(8)], requests)
    assert outputs(seqs) == [expected(r) for r in requests]
    assert_clean(engine)


def test_one_row_is_computed_in_vain_where_an_end_is_not_foreseen() -> None:
    text = expected(request(max_tokens=40))
    foreseen, stopped, found = request(max_tokens=9), request(max_tokens=40, stop_ids={text[3]}), request()
    sinks = [Sink(), Sink(), Sink()]
    sinks[2].stop_after = 2
    for asked, sink, length, vain in zip(
        (foreseen, stopped, found), sinks, (9, 4, 2), (0, 1, 1), strict=True
    ):
        engine = make_engine(ahead_s=AHEAD_S)
        (seq,) = run_load(engine, [0.0], [asked], [sink])
        assert outputs([seq]) == [text[:length]] == [sink.got]
        assert len(sink.ends) == 1
        assert rows(engine) == len(asked.prompt) + length - 1 + vain
        assert_clean(engine)


def test_a_decode_is_in_every_step() -> None:
    """And a prompt's chunks follow each other: as many steps as without."""
    counts = []
    for ahead_s in (None, AHEAD_S):
        engine = make_engine(Sarathi(chunk=8), ahead_s=ahead_s)
        run_load(engine, [0.0, 0.0], [request(max_tokens=30), request(range(60), max_tokens=3)])
        counts.append(engine.steps)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("stages", [1, 2])
def test_the_simulated_host_works_while_a_device_does(stages: int) -> None:
    """Decodes of four sequences, four milliseconds a step and stage, a tenth of which is the host's."""
    took_s = []
    for ahead_s in (None, AHEAD_S):
        engine = make_engine(depth=stages, ahead_s=ahead_s)
        assert engine.runner.depth == stages + (ahead_s is not None)
        run_load(engine, [0.0] * 4, [request([i], max_tokens=100) for i in range(4)])
        took_s.append(engine.kernel.now())
    assert took_s[1] / took_s[0] == pytest.approx(0.9 if stages == 1 else 1.0, rel=0.01)


def test_drafts_and_who_may_leave_wait_for_their_tokens() -> None:
    load = [request([i, 1, 2], max_tokens=40) for i in range(5)]
    engine = make_engine(proposer=Ngram(k=3), ahead_s=AHEAD_S)
    assert outputs(run_load(engine, [0.002 * i for i in range(5)], load)) == [expected(r) for r in load]
    assert_clean(engine)
    engine, began = make_engine(ahead_s=AHEAD_S), []
    engine.watch(began=lambda seq: began.append((seq.known, seq.flying)), left=lambda seq: None)
    run_load(engine, [0.0], [request()])
    assert began == [(4, 0)]


def test_a_step_that_fails_ends_who_was_planned_on_from_it() -> None:
    engine = make_engine(Sarathi(chunk=4), ahead_s=AHEAD_S)
    run, failing = engine.runner.run, LightworkError("the device is gone")

    async def flaky(step: Step) -> object:
        scores = await run(step)
        if any(chunk.seq.id == 1 and chunk.seq.known > 6 for chunk in step.chunks):
            raise failing
        return scores

    engine.runner.run = flaky  # type: ignore[method-assign, assignment]
    sinks = [Sink(), Sink(), Sink()]
    run_load(engine, [0.0, 0.05, 0.1], [request(max_tokens=9)] * 3, sinks)
    assert [sink.ends for sink in sinks] == [[("length", None)], [("error", failing)], [("length", None)]]
    assert_clean(engine)


def test_what_goes_on_at_another_engine_is_not_planned_on_here() -> None:
    kernel, load = Kernel(trace=Trace("test")), [request(range(i, i + 20), max_tokens=15) for i in range(8)]
    engines = [make_engine(kernel=kernel, ahead_s=AHEAD_S, name=f"engine {i}") for i in range(2)]
    seqs = run_load(Fleet(engines, PrefillDecode()), [0.003 * i for i in range(8)], load)
    assert outputs(seqs) == [expected(r) for r in load]
    assert all(engine.steps for engine in engines)
    for engine in engines:
        assert_clean(engine)


# -- as a plan


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"depth": 3}, "depth is 3"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": 2, "use": ("Ngram(k=3)",)}, "Ngram.*has to know what a step chose"),
        ({"depth": 2, "use": ("Experts(folder='x')",)}, "Experts.*has to know"),
    ],
    ids=str,
)
def test_what_cannot_be_formed_ahead_is_refused(plan: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Plan(**plan).techniques()


def test_a_plan_says_so_for_any_scheduler_and_place() -> None:
    """A pipeline's steps share out what runs among one step more than it has stages."""
    for pp, wanted, feeds in ((1, Sarathi(), True), (2, Microbatches(stages=3), False)):
        plan = Plan(model="shape:llama-3-8b", on="sim:a100x2", tp=1, pp=pp, depth=2)
        engine, settings = open_simulated(plan, Kernel())
        assert isinstance(engine, Engine)
        assert (engine.runner.depth, engine.runner.feeds, engine.scheduler) == (pp + 1, feeds, wanted)
        assert ("depth", "2") in [setting[:2] for setting in settings]


# -- for real


class Told(Sink):
    """Keeps all that a caller is told of each continuation, and stops at a text that it finds."""

    def __init__(self, stop: Sequence[int] = ()) -> None:
        super().__init__()
        self.stop = [*stop]
        self.picks: dict[int, list[Pick]] = {}

    def prompt(self, seq: Seq, picks: Sequence[Pick]) -> None:
        self.picks.setdefault(seq.sampling.seed, []).extend(picks)

    def tokens(self, seq: Seq, picks: Sequence[Pick]) -> int | None:
        self.prompt(seq, picks)
        self.got += [pick.token for pick in picks]
        if self.stop and self.got[-len(self.stop) :] == self.stop:
            return len(picks) - len(self.stop)
        return None


HOWS = (
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.8, "seed": 3, "top_p": 0.9, "top_k": 20, "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "logprobs": 0},
    {"temperature": 0.7, "presence_penalty": 0.5, "logit_bias": ((5, 2.0), (9, -100.0))},
)
"""What the device's own choice says, what only the host's says, and what is reported."""


def load() -> list[Request]:
    """Of three lengths, half with a common beginning, each in every way; one reports its prompt."""
    prompts = [tuple((i * k * 7 + k) % 256 for k in range(3, 14 + 9 * (i % 3))) for i in range(10)]
    return [
        Request(
            prompt=(*range(20), *prompt) if i % 2 else prompt,
            max_tokens=24,
            sampling=Sampling(**HOWS[i % len(HOWS)]),  # type: ignore[arg-type]
            n=2 if i == 4 else 1,
            prompt_logprobs=1 if i == 3 else None,
        )
        for i, prompt in enumerate(prompts)
    ]


def said(engine: Engine, stops: Sequence[Sequence[int]]) -> list[dict[int, list[Pick]]]:
    sinks = [Told(stop) for stop in stops]
    seqs = run_load(engine, [0.0] * len(stops), load(), sinks)
    assert all(seq.finished in ("stop", "length") for seq in seqs)
    assert_clean(engine)
    return [sink.picks for sink in sinks]


def parts(heard: list[dict[int, list[Pick]]]) -> tuple[list[list[int]], list[float]]:
    """The tokens of each continuation, and all log-probabilities that were reported."""
    all_picks = [by_seed[seed] for by_seed in heard for seed in sorted(by_seed)]
    flat = [pick for picks in all_picks for pick in picks if pick.logprob is not None]
    logprobs = [x for pick in flat for x in (pick.logprob, *(y for _, y in pick.top)) if x is not None]
    return [[pick.token for pick in picks] for picks in all_picks], logprobs


@pytest.fixture(scope="module")
def stops(checkpoint: Callable[..., Path]) -> list[list[int]]:
    """For every third request two tokens that come in its text, though not at its end."""
    engine, model, _ = open_engine(Plan(model=str(checkpoint("llama"))), Kernel(WallClock()))
    assert isinstance(engine, Engine)
    texts = [[pick.token for pick in next(iter(picks.values()))] for picks in said(engine, [[]] * 10)]
    model.close()
    return [text[9:11] if i % 3 == 0 else [] for i, text in enumerate(texts)]


WAYS: dict[str, tuple[tuple[object, ...], int | None]] = {
    "batched": ((), None),
    "chunked": ((Sarathi(chunk=11),), None),
    "preempted": ((), 6),
    "by turns": ((FastSwitch(every=3, stay=0.3),), 6),
}
"""Techniques, and blocks of 64 tokens if they are to be few."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["compiled", "torch"])
def test_real_steps_say_what_they_say_one_after_another(
    checkpoint: Callable[..., Path],
    stops: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    step: str,
) -> None:
    if step == "torch":
        monkeypatch.setattr("lightwork.serve.opening.compiles", lambda place: False)
    use, blocks = WAYS[way]
    kv_bytes = None if blocks is None else blocks * 64 * 384
    heard = []
    for depth in (1, 2):
        plan = Plan(model=str(checkpoint("llama")), use=use, kv_bytes=kv_bytes, max_len=100, depth=depth)
        engine, model, _ = open_engine(plan, Kernel(WallClock(), trace=Trace("real: cpu")))
        assert isinstance(engine, Engine)
        assert engine.runner.depth == depth
        heard.append(said(engine, stops))
        model.close()
        assert any(s.kind == "preempt" for s in engine.kernel.trace.spans) == (blocks is not None)  # type: ignore[union-attr]
    tokens, logprobs = zip(*map(parts, heard), strict=True)
    assert tokens[0] == tokens[1]
    # torch's sums depend in their last bits on who shares a step
    np.testing.assert_allclose(*logprobs, rtol=0.0 if step == "compiled" else 1e-4)
