"""Aggressive Decoding: outputs drafted from their input (IAD), or by a model without an order (GAD).

Real: an encoder-decoder of our own that corrects 500 sentences of a small language (`_corrector`), where a
pass is taken to last as long whatever its rows, as launches bind so small a model; and 16 sequences of 184
million parameters beside a proposer that is always wrong, which the row budget has to notice.

Simulated: sentences of random tokens, each corrected by a script in place of a model, one request after
another. In natural text more tokens come twice, and places are harder to find again. The decoder has six
layers as wide as Transformer-base and reads the sentence as its prompt; published figures are of an encoder
and a decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from statistics import median

import numpy as np

from lightwork import models
from lightwork.claims import Lab, Measured, _corrector, claim, speculate
from lightwork.claims._corrector import (
    Sources,
    by_itself,
    copying,
    in_blocks,
    in_common,
    judged,
    nat,
    num_tokens,
)
from lightwork.claims._random_llama import random_llama
from lightwork.cluster import parse_place
from lightwork.cluster.pricing import CostModel
from lightwork.decode.acceptance import chain_gain
from lightwork.decode.proposers import Draft, Drafter, Effort, Text
from lightwork.decode.proposers.copy import Copy
from lightwork.decode.verifiers import Verdict
from lightwork.decode.verifiers.relaxed_lossy import RelaxedLossy
from lightwork.memory.kv import KVCache
from lightwork.models.precisions.stored import Stored
from lightwork.models.spec import ModelSpec
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.cost import ClusterCost, predicted
from lightwork.serve.engine import Engine
from lightwork.serve.form_times import measure_forming
from lightwork.serve.loads import Arrival
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.row_times import measure_rows
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import SyntheticRequests, run_load
from lightwork.serve.simulated_runner import SimulatedRunner

SENTENCES, LENGTH, END = 500, 40, 0
MANY, FEW = 0.1, 0.05
"""Share of tokens that are deleted, inserted or replaced."""
FREE = RelaxedLossy(beta=5, tau=4.0)
BLOCK = 25
"""Masks that the simulated drafter fills at a time, as the published one does."""
BATCH, TOKENS, ROUNDS, ASKED = 16, 64, 7, 5
BASE = ModelSpec(
    family="llama",
    vocab_size=32_000,
    hidden_size=512,
    num_layers=6,
    num_heads=8,
    num_kv_heads=8,
    head_size=64,
    ffn_size=2048,
    max_len=1024,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its correction, both with the token that ends them."""

    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Of all sentences: steps of the target, seconds, and what was put out."""

    steps: int
    seconds: float
    outputs: tuple[tuple[int, ...], ...]


@cache
def pairs(edits: float, seed: int) -> tuple[Pair, ...]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(SENTENCES):
        source = [*rng.integers(1, BASE.vocab_size, LENGTH).tolist()]
        target: list[int] = []
        for token in source:
            kind = rng.integers(3) if rng.random() < edits else 3
            target += [[], [token, int(rng.integers(1, 999))], [int(rng.integers(1, 999))], [token]][kind]
        made.append(Pair((*source, END), (*target, END)))
    return tuple(made)


@dataclass(frozen=True, slots=True)
class Guesses:
    """Blocks whose tokens are each right with the same probability. pairs: by the number of the sequence."""

    pairs: tuple[Pair, ...] = field(repr=False)
    k: int = BLOCK
    rate: float = 0.9

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(self.rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        return [Draft.chain(self._block(text, n)) for text, n in zip(texts, rows, strict=True)]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None: ...

    def forget(self, seq_id: int) -> None: ...

    def close(self) -> None: ...

    def _block(self, text: Text, n: int) -> list[int]:
        at = len(text.tokens) - text.prompt_len
        right = self.pairs[text.id].target[at : at + n]
        luck = np.random.default_rng((text.id, at)).random(len(right))
        return [token if u < self.rate else BASE.vocab_size - 1 for token, u in zip(right, luck, strict=True)]


@dataclass(frozen=True, slots=True)
class Drafted:
    """What a step takes, and before one with a draft a pass of a drafter as large as the target over all of
    the output and a block."""

    target: ClusterCost

    def stages(self, step: Step) -> Sequence[float]:
        own = self.target.stages(step)
        if not any(step.drafts):
            return own
        seq = step.chunks[0].seq
        block = Step(chunks=[Chunk(seq, seq.prompt_len, seq.num_output + BLOCK)])
        return [a + b for a, b in zip(own, self.target.stages(block), strict=True)]


@cache
def decoded(proposer: Drafter | None, some: tuple[Pair, ...], on: str = "sim:v100") -> Run:
    """One sentence after another."""
    kernel, kv = Kernel(), KVCache(64, 16, prefix_cache=False)
    texts: dict[int, tuple[int, ...]] = {}

    def script(seq: Seq, position: int) -> int:
        target, at = texts[seq.id], position - seq.prompt_len
        return target[at] if at < len(target) else END

    costs = (ClusterCost(BASE, CostModel(parse_place(on)), dtype="float16") for _ in range(2))
    cost, apart = (Drafted(cost) if isinstance(proposer, Guesses) else cost for cost in costs)
    runner, limits = SimulatedRunner(cost, script=script), Limits(max_len=BASE.max_len)
    engine = Engine(kernel, runner, kv, Sarathi(), limits=limits, proposer=proposer, predict=predicted(apart))
    outputs = []
    for i, pair in enumerate(some):
        texts[i] = pair.target
        request = Request(prompt=pair.source, max_tokens=2 * LENGTH + 2, stop_ids=frozenset([END]))
        (seq,) = run_load(engine, [0.0], [request])
        outputs.append(tuple(seq.tokens[seq.prompt_len :]))
    return Run(engine.steps, kernel.now(), tuple(outputs))


def over_greedy(edits: float, seed: int, on: str = "sim:v100") -> tuple[float, float]:
    """Steps and seconds of greedy decoding over those of IAD, which puts out the same."""
    some = pairs(edits, seed)
    ours, greedy = decoded(Copy(), some, on), decoded(None, some, on)
    assert ours.outputs == greedy.outputs == tuple(pair.target for pair in some)
    return greedy.steps / ours.steps, greedy.seconds / ours.seconds


@claim(
    "aggressive_decoding",
    title="IAD, steps of greedy decoding over its own, 500 corrections that copy nine tenths",
    paper="- (our bar 5)",
    expect=5.0,
    within=0.0,
    bound="at least",
)
def fewer_steps(lab: Lab) -> float:
    return over_greedy(MANY, lab.seed)[0]


@claim(
    "aggressive_decoding",
    title="IAD over greedy, time on a V100 where 19 tokens of 20 are copied",
    paper="7x to 9x",
    expect=8.0,
    within=0.25,
)
def faster(lab: Lab) -> Measured:
    few, many = over_greedy(FEW, lab.seed)[1], over_greedy(MANY, lab.seed)[1]
    return Measured(few, f"{many:.1f}x where 9 of 10 are; one sentence at a time, outputs equal")


@claim(
    "aggressive_decoding",
    title="the same: gain in time over gain in steps",
    paper="time follows steps, as launches bound so small a model",
    expect=1.0,
    within=0.25,
)
def time_follows_steps(lab: Lab) -> float:
    steps, seconds = over_greedy(FEW, lab.seed)
    return seconds / steps


@claim(
    "aggressive_decoding",
    title="gain in time on an H100 over that on a V100",
    paper="better devices gain more",
    expect=1.0,
    within=0.0,
    bound="at least",
)
def better_devices_gain_more(lab: Lab) -> float:
    return over_greedy(FEW, lab.seed, "sim:h100")[1] / over_greedy(FEW, lab.seed)[1]


@claim(
    "aggressive_decoding",
    title="IAD, steps per sentence that is right already",
    paper="1 step; the row budget has to learn that first",
    expect=1.0,
    within=0.0,
    bound="at most",
    unit="",
)
def nothing_to_correct(lab: Lab) -> Measured:
    steps = decoded(Copy(), pairs(0.0, lab.seed)).steps
    return Measured(steps / SENTENCES, f"{steps} steps for {SENTENCES} sentences")


@claim(
    "aggressive_decoding",
    title="IAD, steps over those of greedy decoding where outputs share nothing with their sources",
    paper="never more than greedy",
    expect=1.0,
    within=0.0,
    bound="at most",
)
def nothing_to_copy(lab: Lab) -> float:
    sources, others = pairs(0.0, lab.seed), pairs(0.0, lab.seed + 1)
    foreign = tuple(replace(a, target=b.target) for a, b in zip(sources, others, strict=True))
    return decoded(Copy(), foreign).steps / decoded(None, foreign).steps


def guessed_over_greedy(seed: int) -> tuple[float, float]:
    """Passes, those of the drafter too, and seconds of greedy decoding over those of GAD."""
    some = pairs(MANY, seed)
    ours, greedy = decoded(Guesses(some), some), decoded(None, some)
    assert ours.outputs == greedy.outputs
    return greedy.steps / (2 * ours.steps), greedy.seconds / ours.seconds


@claim(
    "aggressive_decoding",
    title="GAD over greedy, time on a V100, blocks of 25 whose tokens are right 9 times in 10",
    paper="3x to 5x",
    expect=4.0,
    within=0.25,
)
def guessing_is_faster(lab: Lab) -> float:
    return guessed_over_greedy(lab.seed)[1]


@claim(
    "aggressive_decoding",
    title="the same: gain in time over gain in passes of both models",
    paper="time follows passes, as launches bound so small a model",
    expect=1.0,
    within=0.25,
)
def time_follows_passes(lab: Lab) -> float:
    passes, seconds = guessed_over_greedy(lab.seed)
    return seconds / passes


@dataclass(frozen=True, slots=True)
class Wrong:
    """Drafts what was said last, again and again; the target never does."""

    k: int = 8

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        return [Draft.chain([text.tokens[-1]] * n) for text, n in zip(texts, rows, strict=True)]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None: ...

    def forget(self, seq_id: int) -> None: ...

    def close(self) -> None: ...


@claim(
    "aggressive_decoding",
    title="tokens/s of 16 sequences beside a proposer that is always wrong, over none",
    paper="- (our bar 0.98)",
    expect=0.98,
    within=0.0,
    bound="at least",
    mode="real",
)
def useless_drafts_cost_nothing(lab: Lab) -> Measured:
    model = models.load_compiled(random_llama(), precision=Stored())
    try:
        times = measure_rows(model, 64)
        forming = measure_forming(Wrong(), model.spec.vocab_size, max_seqs=BATCH, max_len=1024)
        serve, ratios, drafted = partial(Engine, predict=times.predict, forming=forming), [], 0
        for i in range(ROUNDS):
            took_s: dict[bool, float] = {}
            for wrong in (True, False) if i % 2 else (False, True):
                kernel, kv = Kernel(WallClock(), seed=lab.seed), KVCache(64, 64, prefix_cache=False)
                limits, proposer = Limits(max_len=1024), Wrong() if wrong else None
                runner = LocalRunner(kernel, model, kv)
                engine = serve(kernel, runner, kv, Sarathi(), limits=limits, proposer=proposer)
                arrivals = [Arrival(0.0, 16, TOKENS)] * BATCH
                requests = SyntheticRequests(arrivals, model.spec.vocab_size, kernel.rng("prompts"))
                begin_s = kernel.now()
                drafted += sum(seq.drafted for seq in run_load(engine, arrivals, requests))
                took_s[wrong] = kernel.now() - begin_s
            ratios.append(took_s[False] / took_s[True])
    finally:
        model.close()
    note = f"[{min(ratios):.3f}, {max(ratios):.3f}], n={ROUNDS}; {drafted} rows of drafts"
    return Measured(median(ratios), note)


@claim(
    "aggressive_decoding",
    title="tokens/s of the slowest of eight proposers over none, new questions one at a time, built-in model",
    paper="- (our bar 0.95)",
    expect=speculate.KEPT,
    within=0.0,
    bound="at least",
    mode="real",
)
def asking_costs_little(lab: Lab) -> Measured:
    """A step takes a fifth of a millisecond, as long as some drafts take to form."""
    found = speculate.compare(rounds=ASKED, tasks=(speculate.NEW,))
    slowest = min((row for row in found if row.use != speculate.PLAIN), key=lambda row: row.over_plain[0])
    middle, low, high = slowest.over_plain
    return Measured(middle, f"{slowest.use} [{low:.2f}, {high:.2f}], n={ASKED}")


@claim(
    "aggressive_decoding",
    title="tokens that the corrector gets right, 500 sentences new to it",
    paper="- (our bar 0.95)",
    expect=0.95,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def corrector_is_trained(lab: Lab) -> Measured:
    sources, targets = judged(lab.seed)
    right = [output == target for output, target in zip(by_itself(sources).outputs, targets, strict=True)]
    note = f"each behind the right ones before it; {sum(right)} of {SENTENCES} sentences all right by itself"
    return Measured(_corrector.accuracy(sources, targets), note)


@claim(
    "aggressive_decoding",
    title="calls of greedy decoding over IAD's, an encoder-decoder, 500 corrections of 6 words in 100",
    paper="- (our bar 5)",
    expect=5.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def fewer_calls(lab: Lab) -> Measured:
    return calls_over_greedy(judged(lab.seed)[0])


@claim(
    "aggressive_decoding",
    title="the same where twice as many words are wrong",
    paper="- (our bar 5 where nine tenths are copied)",
    expect=5.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def fewer_calls_of_many_mistakes(lab: Lab) -> Measured:
    return calls_over_greedy(judged(lab.seed, 2 * _corrector.RATE)[0])


def calls_over_greedy(sources: Sources) -> Measured:
    found = copying(sources)
    copied = [in_common(s, o) for s, o in zip(sources, found.outputs, strict=True)]
    note = f"{sum(copied) / num_tokens(found.outputs):.0%} of the output copied; all outputs equal"
    return Measured(num_tokens(found.outputs) / sum(found.calls), note)


@claim(
    "aggressive_decoding",
    title="IAD, calls per sentence that is right already, behind a first one that teaches the row budget",
    paper="1 call",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def right_already(lab: Lab) -> Measured:
    sources, _ = judged(lab.seed, 0.0)
    outputs = by_itself(sources).outputs
    right = tuple(s for s, output in zip(sources, outputs, strict=True) if [*s] == output)
    first, *others = copying(right).calls
    return Measured(sum(others) / len(others), f"{len(others)} sentences; the first took {first}")


@claim(
    "aggressive_decoding",
    title="IAD, calls over those of greedy decoding, the worst of 500 corrections and of hostile sources",
    paper="never more than greedy",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def worst_sentence(lab: Lab) -> Measured:
    rng, (sources, _) = np.random.default_rng(lab.seed), judged(lab.seed)
    end, size = _corrector.blocks().end, _corrector.spec().vocab_size
    word = sources[0][0]
    hostile = [(end,), (word,), (word,) * 60, (word, end) * 30]
    hostile += [tuple(rng.integers(0, size, 60).tolist()) for _ in range(20)]
    ratios = []
    for some in (sources, tuple(hostile)):
        found = copying(some)
        ratios.append(max(n / len(o) for n, o in zip(found.calls, found.outputs, strict=True)))
    return Measured(max(ratios), f"{ratios[0]:.2f} of corrections, {ratios[1]:.2f} of hostile sources")


@claim(
    "aggressive_decoding",
    title="GAD, tokens kept of a block of 8, 500 corrections",
    paper="- (our bar 2)",
    expect=2.0,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def kept_of_a_block(lab: Lab) -> Measured:
    found = in_blocks(judged(lab.seed)[0])
    fewer = num_tokens(found.outputs) / sum(found.calls)
    note = f"{found.drafts} blocks; {fewer:.1f}x fewer calls than greedy decoding; all outputs equal"
    return Measured(found.accepted / found.drafts, note)


@claim(
    "aggressive_decoding",
    title="GAD++, which is lossy: its calls over GAD's",
    paper="fewer still",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def relaxed(lab: Lab) -> Measured:
    (sources, targets), exact = judged(lab.seed), in_blocks(judged(lab.seed)[0])
    found = _corrector.corrected(nat(), sources, FREE)
    changed = sum(a != b for a, b in zip(found.outputs, exact.outputs, strict=True))
    right, before = (
        sum(a == b for a, b in zip(outputs, targets, strict=True))
        for outputs in (found.outputs, exact.outputs)
    )
    note = f"{FREE!r}: {changed} of {SENTENCES} outputs differ, {right} are right where {before} were"
    return Measured(sum(found.calls) / sum(exact.calls), note)
