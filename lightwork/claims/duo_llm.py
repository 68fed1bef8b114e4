"""Duo-LLM: what the best routing of tokens over big and small MLPs would give, and what routers reach.

Not a speed paper, so its orderings are measured, on a model of our own (`_duo`). At one budget every token
has the same number of big layers, whoever chose them; fixed patterns and gates are chosen on other texts than
they are judged on. An oracle knows the token that it is judged by. Simulated: what fewer bytes of MLPs come
to in the decode step of a larger model.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from random import Random

import torch
from torch import Tensor

from lightwork import models
from lightwork.claims import Lab, Measured, claim
from lightwork.claims._chats import one_thread
from lightwork.claims._duo import (
    BUDGETS,
    LAYERS,
    Found,
    folder,
    found,
    small_model,
    texts,
    trained,
    worst,
)
from lightwork.cluster import CostModel, parse_place
from lightwork.decode.proposers import Target
from lightwork.decode.proposers.draft_model import BLOCK_SIZE, DraftModel, DraftRunner
from lightwork.decode.sampling import Sampling
from lightwork.memory.kv import KVCache
from lightwork.models.duo import BIG, SKIP, SMALL, narrowed
from lightwork.models.duo_oracle import Prefixes, coordinate_search, every_pattern
from lightwork.models.presets import preset
from lightwork.models.work import forward_work
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

HALF = LAYERS // 2
TRIALS = 100
"""Random patterns, the best of which the paper sets beside a router."""
ONE_BY_ONE = 8
SEARCHED = 40
"""Tokens that coordinate search is tried on, of the model with skips."""
STARTS = 3
ASKED, CONTINUED, DRAFTED = 12, 48, 4
"""Texts that are continued, by so many tokens, with drafts of so many."""
PLACE, SHAPE, CONTEXT = "sim:a100", "llama-2-7b", 1024


def _ratio(f: Found, a_N: Tensor, b_N: Tensor) -> str:
    low, high = f.interval(a_N, b_N)
    return f"{float(a_N.mean() / b_N.mean()):.3f} [{low:.3f}, {high:.3f}]"


def _about(f: Found) -> str:
    return f"{len(f.losses)} tokens of {int(f.text.max()) + 1} texts, 95 % by resampling texts"


@claim(
    "duo_llm",
    title="loss of an oracle's one big layer over that of twelve",
    paper="a big module in one layer beats big modules in all (abstract)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def one_big_layer_beats_all(lab: Lab) -> Measured:
    return _oracle_over_all_big(lab, 1)


@claim(
    "duo_llm",
    title="the same with six big layers",
    paper="six of twelve beat all twelve (summaries of the paper)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def half_of_the_layers_beat_all(lab: Lab) -> Measured:
    return _oracle_over_all_big(lab, HALF)


def _oracle_over_all_big(lab: Lab, budget: int) -> Measured:
    f = found(lab.seed)
    oracle, all_big = f.oracle(budget), f.router(LAYERS)
    note = f"{_ratio(f, oracle, all_big)}; losses {oracle.mean():.3f} and {all_big.mean():.3f}"
    return Measured(float(oracle.mean() / all_big.mean()), f"{note}, all small {f.router(0).mean():.3f}")


@claim(
    "duo_llm",
    title="loss of the oracle over that of the best fixed pattern, worst of 11 budgets",
    paper="oracles are far ahead",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def oracles_beat_fixed_patterns(lab: Lab) -> Measured:
    f = found(lab.seed)
    budget, ratio = worst(lambda k: float(f.oracle(k).mean() / f.fixed(k).mean()))
    at_half = _ratio(f, f.oracle(HALF), f.fixed(HALF))
    return Measured(ratio, f"at {budget} big layers; at {HALF} {at_half}; {_about(f)}")


@claim(
    "duo_llm",
    title="loss of the best fixed pattern over the mean of random ones, worst of 11 budgets",
    paper="where a big layer stands matters",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def fixed_patterns_beat_random_ones(lab: Lab) -> Measured:
    f = found(lab.seed)
    budget, ratio = worst(lambda k: float(f.fixed(k).mean() / f.random(k).mean()))
    at_half = _ratio(f, f.fixed(HALF), f.random(HALF))
    return Measured(ratio, f"at {budget} big layers; at {HALF} {at_half}; chosen on other texts")


@claim(
    "duo_llm",
    title="loss of the trained router over the mean of random patterns, worst of 11 budgets",
    paper="routers lie between random routing and oracles",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def routers_beat_random_patterns(lab: Lab) -> Measured:
    f = found(lab.seed)
    budget, ratio = worst(lambda k: float(f.router(k).mean() / f.random(k).mean()))
    some = ", ".join(f"{k} {_ratio(f, f.router(k), f.random(k))}" for k in (1, 3, HALF, 9))
    return Measured(ratio, f"at {budget} big layers; by budget {some}; {_about(f)}")


@claim(
    "duo_llm",
    title="loss of the oracle over the trained router's, worst of 11 budgets",
    paper="oracles are far ahead",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def oracles_beat_routers(lab: Lab) -> Measured:
    f = found(lab.seed)
    budget, ratio = worst(lambda k: float(f.oracle(k).mean() / f.router(k).mean()))
    some = ", ".join(f"{k} {_ratio(f, f.oracle(k), f.router(k))}" for k in (1, 3, HALF, 9))
    return Measured(ratio, f"at {budget} big layers; by budget {some}; {_about(f)}")


@claim(
    "duo_llm",
    title=f"loss of the trained router over that of the best of {TRIALS} random patterns, mean of 11 budgets",
    paper="about as good",
    expect=1.0,
    within=0.1,
    mode="real",
)
def a_router_is_like_the_best_of_many_trials(lab: Lab) -> Measured:
    f = found(lab.seed)
    rng = torch.Generator().manual_seed(lab.seed)
    ratios = []
    for k in BUDGETS:
        means = f.of(k).mean(0)
        tried = means[torch.randint(len(means), (TRIALS,), generator=rng)]
        ratios.append(float(f.router(k).mean() / tried.min()))
    note = f"from {min(ratios):.3f} to {max(ratios):.3f}; one pattern for all tokens, the best of them here"
    return Measured(sum(ratios) / len(ratios), note)


@claim(
    "duo_llm",
    title="share of the quarter of tokens with the highest loss whose loss no pattern lowers by a tenth",
    paper="some tokens of high loss do not gain from compute",
    expect=0.02,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def high_loss_is_not_difficulty(lab: Lab) -> Measured:
    f = found(lab.seed)
    plain = f.router(0)
    gained = 1 - f.losses.min(1).values / plain
    high = plain >= plain.quantile(0.75)
    ranks = torch.stack([x.argsort().argsort().float() for x in (plain, plain - f.losses.min(1).values)])
    note = f"rank correlation of loss and difficulty {float(torch.corrcoef(ranks)[0, 1]):.2f}"
    return Measured(float((gained[high] < 0.1).float().mean()), f"{int(high.sum())} tokens; {note}")


@claim(
    "duo_llm",
    title="losses of 4,096 patterns at once that differ in a bit from those of each alone",
    paper="- (none)",
    expect=0.0,
    within=0.0,
    mode="real",
    unit="",
)
@one_thread()
def a_batch_of_patterns_is_exact(lab: Lab) -> Measured:
    rng, patterns = Random(lab.seed), every_pattern(LAYERS)
    differ = 0
    for _, (tokens_T, places) in zip(range(ONE_BY_ONE), texts(f"bits {lab.seed}"), strict=False):
        prefixes = Prefixes(trained(), tokens_T)
        together = prefixes.losses(places[0], patterns)
        some = rng.sample(range(len(patterns)), 64)
        alone = torch.cat([prefixes.losses(places[0], patterns[i][None]) for i in some])
        differ += int((together[some] != alone).sum())
    return Measured(differ, f"{ONE_BY_ONE} tokens, 64 of their patterns")


@cache
@one_thread()
def _searched(seed: int) -> tuple[list[Tensor], list[float], list[float]]:
    """Patterns with skips that coordinate search found at the cost of all-small, their losses, and those of
    the best of as many random patterns of that cost."""
    duo = trained(skips=True)
    costs, rng = duo.widths, torch.Generator().manual_seed(seed)
    budget = LAYERS * float(costs[SMALL])
    starts = torch.full((1 + STARTS, LAYERS), SMALL)
    for start in starts[1:]:
        start[:] = SKIP
        start[torch.randperm(LAYERS, generator=rng)[: int(budget / costs[BIG])]] = BIG
    drawn = torch.randint(3, (1 << 16, LAYERS), generator=rng)
    within = drawn[costs[drawn].sum(1) <= budget]
    patterns, losses, tried = [], [], []
    for _, (tokens_T, places) in zip(range(SEARCHED), texts(f"skips {seed}"), strict=False):
        prefixes, scored = Prefixes(duo, tokens_T), 0

        def score(some: Tensor, prefixes: Prefixes = prefixes, at: int = places[0]) -> Tensor:
            nonlocal scored
            scored += len(some)
            return prefixes.losses(at, some)

        pattern, loss = coordinate_search(score, starts, costs, budget)
        patterns.append(pattern)
        losses.append(loss)
        tried.append(float(prefixes.losses(places[0], within[:scored]).min()))
    return patterns, losses, tried


@claim(
    "duo_llm",
    title="with skips, at the cost of all small: loss of coordinate search over the best of as many trials",
    paper="- (3^12 patterns are too many to try; our bar: no worse)",
    expect=1.0,
    within=0.0,
    bound="at most",
    mode="real",
)
def search_beats_trials(lab: Lab) -> Measured:
    _, losses, tried = _searched(lab.seed)
    note = f"losses {sum(losses) / SEARCHED:.4f} and {sum(tried) / SEARCHED:.4f}, {SEARCHED} tokens"
    return Measured(sum(losses) / sum(tried), note)


@claim(
    "duo_llm",
    title="share of those patterns that skip other layers than the last ones",
    paper="the best way to skip is not to exit early",
    expect=0.5,
    within=0.0,
    bound="at least",
    mode="real",
    unit="",
)
def skipping_is_not_exiting_early(lab: Lab) -> Measured:
    patterns = torch.stack(_searched(lab.seed)[0])
    skipped = patterns == SKIP
    exits = skipped.long().diff(dim=1).ge(0).all(1) & skipped.any(1)
    skips = skipped.any(1)
    by_third = [f"{share:.2f}" for share in skipped.float().view(SEARCHED, 3, -1).mean((0, 2)).tolist()]
    note = f"{int(skips.sum())} of {SEARCHED} skip; share of layers skipped by third: {', '.join(by_third)}"
    return Measured(float((skips & ~exits).sum() / max(1, int(skips.sum()))), note)


def _answers(drafts: bool, seed: int, temperature: float) -> list[Seq]:
    """By a model and, with drafts, its all-small path before each step, to which rows cost nothing."""
    model = models.load(str(folder()))
    kernel, kv = Kernel(WallClock()), KVCache(512, BLOCK_SIZE)
    limits = Limits(max_len=model.spec.max_len)
    runner, size = LocalRunner(kernel, model, kv), model.spec.vocab_size
    with ThreadPoolExecutor(1) as beside:
        target = Target(model="", on="cpu", max_seqs=ASKED, max_len=limits.max_len, beside=beside)
        path = DraftRunner(DraftModel(k=DRAFTED), small_model(), "float32", BLOCK_SIZE, target)
        engine = Engine(
            kernel,
            runner,
            kv,
            Sarathi(),
            limits=limits,
            proposer=path if drafts else None,
            predict=lambda step: 1.0,
            vocab_size=size,
        )
        asked = [
            Request(
                prompt=tuple(tokens_T[: places[0] + 1].tolist()),
                max_tokens=CONTINUED,
                sampling=Sampling(temperature=temperature, seed=number),
            )
            for number, (tokens_T, places) in zip(range(ASKED), texts(f"drafts {seed}"), strict=False)
        ]
        return run_load(engine, [0.0] * ASKED, asked)


@cache
def _drafted(seed: int, temperature: float) -> tuple[int, float]:
    """Texts that drafts of the all-small path changed, and how many of a step's were kept."""
    plain, drafted = (_answers(drafts, seed, temperature) for drafts in (False, True))
    changed = sum(a.tokens != b.tokens for a, b in zip(plain, drafted, strict=True))
    kept = sum(seq.accepted for seq in drafted)
    return changed, kept / (sum(seq.num_output for seq in drafted) - kept)


@claim(
    "duo_llm",
    title="texts that drafts by the all-small path change, greedy and sampled",
    paper="- (none)",
    expect=0.0,
    within=0.0,
    mode="real",
    unit="",
)
def drafts_of_the_small_path_are_lossless(lab: Lab) -> Measured:
    kept, changed = [], 0
    for temperature in (0.0, 1.0):
        some, each = _drafted(lab.seed, temperature)
        changed += some
        kept.append(f"{each:.2f} of {DRAFTED} kept at temperature {temperature:g}")
    return Measured(changed, f"{2 * ASKED} texts; of a step's drafts: {', '.join(kept)}")


def _step_s(num_big: float, rows: int = 1) -> float:
    """A decode step of a model of SHAPE whose small MLPs have a quarter of the width, on PLACE."""
    spec = preset(SHAPE)
    mean = (1.0 - 0.75 * (1.0 - num_big / LAYERS)) * spec.ffn_size
    work = forward_work(narrowed(spec, round(mean)), [(CONTEXT, rows)], rows, dtype="bfloat16")
    costs = CostModel(parse_place(PLACE))
    return costs.seconds(work)


@claim(
    "duo_llm",
    title=f"share of a decode step saved by six big layers of twelve, over the weight bytes' ({SHAPE}, A100)",
    paper="- (not a speed paper; decode is bound by bytes)",
    expect=1.0,
    within=0.15,
)
def bytes_saved_are_time_saved(lab: Lab) -> Measured:
    spec = preset(SHAPE)
    every = spec.num_params - spec.vocab_size * spec.hidden_size  # the table of embeddings is not read whole
    saved_bytes = 0.75 * (1 - HALF / LAYERS) * spec.mlp_params() / every
    saved_s = 1 - _step_s(HALF) / _step_s(LAYERS)
    times = ", ".join(f"{k} {1e3 * _step_s(k):.2f}" for k in (0, 1, HALF, LAYERS))
    note = f"batch 1, context {CONTEXT}; {saved_bytes:.0%} of the bytes; ms by big layers of 12: {times}"
    return Measured(saved_s / saved_bytes, note)


@claim(
    "duo_llm",
    title=f"greedy decoding with drafts of the all-small path over without, {SHAPE} on A100",
    paper="- (our bar: faster)",
    expect=1.0,
    within=0.0,
    bound="at least",
)
def drafts_save_time(lab: Lab) -> Measured:
    tokens = 1 + _drafted(lab.seed, 0.0)[1]
    round_s = DRAFTED * _step_s(0) + _step_s(LAYERS, 1 + DRAFTED)
    note = (
        f"{tokens:.2f} tokens a round, as the model of 3 million parameters accepts drafts on its own texts"
    )
    return Measured(tokens * _step_s(LAYERS) / round_s, note)
