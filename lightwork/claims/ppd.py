"""Parallel prompt decoding: guesses by the target's own pass, and trees as large as the hardware makes free.

Simulated: a Llama-2 7B, the shape of Vicuna 7B, on one A100, one text at a time. How often guesses are right
is the authors' measurement, which their published trees tell; tokens are drawn by it, each independently.
The drafter, its trees, the row budget and the engine are those that serve, but for the reading of logits.
Drafts of the engine have 64 rows at most, so larger trees are only solved. Real: prompt tokens of the
built-in model, trained by scripts/train_prompts.py, on questions about tools that neither was trained on. Its
steps are shorter than what a draft takes to form, so the size of trees is measured on a larger model, whose
guesses are right as often as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from lightwork.agents.worlds.lessons import asked
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.claims import Lab, Measured, claim
from lightwork.claims._iid_drafts import VOCAB_SIZE, said
from lightwork.claims._random_llama import random_llama
from lightwork.cluster import parse_place
from lightwork.cluster.pricing import CostModel
from lightwork.decode.proposers import MAX_NODES, Draft, Text
from lightwork.decode.proposers.ppd import PPD, PromptDrafter
from lightwork.decode.sampling import Floats, Sampling, noise_key
from lightwork.decode.tree import Trees, all_trees, best_rows, best_trees, concave
from lightwork.errors import InvariantError
from lightwork.memory.kv import KVCache
from lightwork.models import load, load_compiled, read_shape, resolve
from lightwork.models.compiled import CompiledModel
from lightwork.models.precisions.stored import Stored
from lightwork.models.presets import preset
from lightwork.models.prompt_tokens import FILE, PromptTokens, read_prompt_tokens, write_prompt_tokens
from lightwork.models.spec import ModelSpec
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.budget import LEAST
from lightwork.serve.cost import ClusterCost, predicted
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.plan import BLOCK_SIZE, Plan
from lightwork.serve.row_times import RowTimes, measure_rows
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request, begin
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated_runner import SimulatedRunner
from lightwork.train.own_texts import own_texts

SHAPE, PLACE, PROMPT, OUTPUT, TEXTS, CONTEXT = "llama-2-7b", "sim:a100", 128, 2000, 4, 512
PUBLISHED_ROWS, PUBLISHED_SPEEDUP = 105, 2.49
SIZES = range(3, 130, 3)
"""Of trees, as the authors' search has them."""
PUBLISHED = np.array(
    [
        [0.48335, 0.14342, 0.07360, 0.04540, 0.03087, 0.02155, 0.01658, 0.01323, 0.00932, 0.00845],
        [0.26256, 0.14561, 0.08114, 0.05760, 0.04283, 0.03230, 0.02570, 0.02152, 0.01903, 0.01548],
        [0.16413, 0.11756, 0.08092, 0.05784, 0.04586, 0.03672, 0.03128, 0.02345, 0.02345, 0.01789],
    ]
)
"""By rank, of the first, second and third prompt token."""

Seconds = Callable[[int], float]
"""Of a step, by the rows of each text's draft."""


def ranked(right: int, position: int, level: int, ranks: int, seed: int) -> list[int]:
    """A list that holds the right token at a rank drawn by the published accuracies, or does not."""
    chance = noise_key(~seed, (position << 8) + level) * 2.0**-64
    rank = int(np.searchsorted(np.cumsum(PUBLISHED[level]), chance, "right"))
    return [right if i == rank else (right + 1 + i) % VOCAB_SIZE for i in range(ranks)]


def drawn(text: Text, scores_cV: Floats, position: int, ranks: int) -> list[list[int]]:
    """See `Guess`: of what the script says."""
    seed, levels = text.sampling.seed, range(len(scores_cV))
    return [ranked(said(text, position + level), position, level, ranks, seed) for level in levels]


def free(step: Step) -> float:
    """Rows cost nothing."""
    return 1.0


def seconds(seqs: Sequence[Seq]) -> float:
    """Spent on what came after each text's first token."""
    return sum((seq.finished_s or 0.0) - (seq.first_token_s or 0.0) for seq in seqs)


def per_step(seqs: Sequence[Seq]) -> float:
    """Tokens that a step of each text puts out."""
    tokens = sum(len(seq.tokens) - seq.prompt_len for seq in seqs)
    return tokens / (tokens - sum(seq.accepted for seq in seqs))


def given_rows(trees: Sequence[Trees]) -> int:
    """Rows that are given if they cost nothing: those that add enough for a budget to look at."""
    return sum(gain >= LEAST for gain in concave([found.tokens_per_step for found in trees]))


def priced(spec: ModelSpec, place: str) -> ClusterCost:
    return ClusterCost(spec, CostModel(parse_place(place)), dtype="bfloat16")


def by_rows(predict: Callable[[Step], float], context: int, seqs: int = 1) -> Seconds:
    """seqs: texts of `context` tokens that share a step."""
    request = Request(prompt=(0,) * context, max_tokens=OUTPUT, n=seqs)
    chunks = [Chunk(seq, context - 1, 1) for seq in begin(request, None, iter(range(seqs)), 0.0)]
    return lambda rows: predict(Step(chunks=chunks, drafts=[Draft.chain([0] * rows)] * seqs))


@cache
def simulated(drafts: bool, costless: bool, seed: int) -> list[Seq]:
    """One text after another. costless: rows are given as if they cost nothing."""
    kernel, kv = Kernel(), KVCache((PROMPT + OUTPUT + MAX_NODES) // BLOCK_SIZE + 1, BLOCK_SIZE)
    cost, apart = (priced(preset(SHAPE), PLACE) for _ in range(2))
    engine = Engine(
        kernel,
        SimulatedRunner(cost, script=said),
        kv,
        Sarathi(),
        limits=Limits(max_len=PROMPT + OUTPUT, max_seqs=1),
        proposer=PromptDrafter(PPD(k=MAX_NODES), PUBLISHED, drawn) if drafts else None,
        vocab_size=VOCAB_SIZE,
        predict=free if costless else predicted(apart),
        num_probes=len(PUBLISHED),
    )
    requests = [
        Request(prompt=(0,) * PROMPT, max_tokens=OUTPUT, sampling=Sampling(seed=(seed << 20) + i))
        for i in range(TEXTS)
    ]
    seqs = run_load(engine, [0.0] * TEXTS, requests)
    for seq in seqs:
        assert seq.tokens[PROMPT:] == [said(seq, PROMPT + i) for i in range(OUTPUT)]
    return seqs


@cache
def solved() -> dict[int, Trees]:
    """By rows, of the published accuracies."""
    found = {0: best_trees(PUBLISHED, 0)}
    for rows in SIZES:
        found[rows] = best_trees(PUBLISHED, rows, found[rows - 3] if rows > 3 else None)
    return found


def best_size(took: Seconds) -> int:
    """Of the trees solved, that with the most tokens per second."""
    return max(solved(), key=lambda rows: solved()[rows].tokens_per_step / took(rows))


@claim(
    "ppd",
    title="rows of the best tree, 7B on one A100",
    paper="105 (what the authors' scripts evaluate 7B with)",
    expect=PUBLISHED_ROWS,
    within=0.2,
    unit=" rows",
)
def size_of_the_tree(lab: Lab) -> Measured:
    took = by_rows(predicted(priced(preset(SHAPE), PLACE)), CONTEXT)
    rows = best_size(took)
    tokens = solved()[rows].tokens_per_step
    note = f"{tokens:.2f} tokens a step, {tokens * took(0) / took(rows):.2f}x plain; {CONTEXT} tokens before"
    return Measured(float(rows), note)


@claim(
    "ppd",
    title="tokens/s over plain decoding, 7B on one A100, one text at a time",
    paper="up to 2.49x",
    expect=PUBLISHED_SPEEDUP,
    within=0.2,
)
def over_plain(lab: Lab) -> Measured:
    ours, plain = (simulated(drafts, False, lab.seed) for drafts in (True, False))
    note = f"{per_step(ours):.2f} tokens a step, trees of up to {MAX_NODES} rows"
    return Measured(seconds(plain) / seconds(ours), note)


@claim(
    "ppd",
    title="tokens per step of the simulated engine over those solved",
    paper="- (our bar 0.1)",
    expect=1.0,
    within=0.1,
)
def as_solved(lab: Lab) -> Measured:
    trees = all_trees(PUBLISHED, MAX_NODES)
    rows = given_rows(trees)
    expected = trees[rows].tokens_per_step
    found = per_step(simulated(True, True, lab.seed))
    return Measured(found / expected, f"{expected:.2f} with {rows} rows")


@claim(
    "ppd",
    title="rows of a text's best tree if 16 share a step, over those alone",
    paper="- (our bar half: a batch shares what the hardware makes free)",
    expect=0.5,
    within=0.0,
    bound="at most",
)
def shared_by_a_batch(lab: Lab) -> Measured:
    predict = predicted(priced(preset(SHAPE), PLACE))
    alone, many = (best_size(by_rows(predict, CONTEXT, seqs)) for seqs in (1, 16))
    return Measured(many / alone, f"{many} and {alone}")


# -- the built-in model, for real

MODEL = "tiny:llama"
ANSWERED, LONGEST = 160, 128


@cache
def questions(seed: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(resolve(MODEL) / "tokenizer.json"))
    return asked(words, PlanWorld(split="heldout"), Random(f"claims {seed}"), ANSWERED)


def answers(*use: object, seed: int) -> list[Seq]:
    """One after another; drafts get all rows that are expected to add tokens."""
    plan = Plan(model=MODEL, use=use, threads=1, max_seqs=1)
    return own_texts(plan, questions(seed), LONGEST, predict=free)[1]


@cache
def guessed(seed: int) -> list[Seq]:
    return answers(PPD(), seed=seed)


@claim(
    "ppd",
    title="texts that drafts changed, of 160 answers of the built-in model",
    paper="- (ours are exact; the publication's sampling accepts what is typical)",
    expect=0.0,
    within=0.0,
    bound="at most",
    mode="real",
    unit="",
)
def exact(lab: Lab) -> Measured:
    plain, ours = answers(seed=lab.seed), guessed(lab.seed)
    changed = sum(a.tokens != b.tokens for a, b in zip(plain, ours, strict=True))
    return Measured(float(changed), f"{sum(len(seq.tokens) - seq.prompt_len for seq in plain)} tokens")


@claim(
    "ppd",
    title="guesses accepted a step, beyond those of one random prompt token, built-in model",
    paper="- (our bar 0.3)",
    expect=0.3,
    within=0.0,
    bound="at least",
    mode="real",
    unit=" tokens",
)
def trained_over_random(lab: Lab) -> Measured:
    with TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        write_prompt_tokens(file, random_prompt(lab.seed))
        random = answers(PPD(prompts=str(file)), seed=lab.seed)
    found, base = per_step(guessed(lab.seed)) - 1.0, per_step(random) - 1.0
    return Measured(found - base, f"{found:.2f} and {base:.2f}")


def random_prompt(seed: int) -> PromptTokens:
    """One, with its own accuracy."""
    import torch

    from lightwork.train.prompt_tokens import accuracy, as_batches

    model, spec = load(MODEL), read_shape(MODEL)
    std = float(model.weights.embed.std())
    embeddings = np.random.default_rng(seed).normal(0.0, std, (1, spec.hidden_size)).astype(np.float32)
    texts = as_batches([(seq.tokens, seq.prompt_len) for seq in answers(seed=seed + 1)], 8)
    return PromptTokens(embeddings, accuracy(torch.from_numpy(embeddings), model.weights, spec, texts))


@claim(
    "ppd",
    title="tokens per step of the built-in model over those solved from its accuracies",
    paper="- (our bar 0.1)",
    expect=1.0,
    within=0.1,
    mode="real",
)
def steady_state(lab: Lab) -> Measured:
    trees = all_trees(read_prompt_tokens(resolve(MODEL) / FILE, read_shape(MODEL)).accuracy_mR, PPD().k)
    rows = given_rows(trees)
    expected = trees[rows].tokens_per_step
    return Measured(per_step(guessed(lab.seed)) / expected, f"{expected:.2f} with {rows} rows")


# -- the size of trees, for real: 184 million random weights, guesses right as often as published

GIVEN, SIZED, ROUNDS, HERE = 16, 128, 3, 128
TRIED = (0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(slots=True)
class Machine:
    """A model on this CPU, how long its steps take by rows, and the one text that it is asked for."""

    model: CompiledModel
    times: RowTimes
    text: list[int] = field(default_factory=list)

    def decode(self, drafter: PromptDrafter | None, predict: Callable[[Step], float]) -> float:
        """Seconds from the first token to the last. Raises InvariantError for another text than before."""
        kernel, kv = Kernel(WallClock()), KVCache(8, 64, prefix_cache=False)
        engine = Engine(
            kernel,
            LocalRunner(kernel, self.model, kv),
            kv,
            Sarathi(),
            limits=Limits(max_len=GIVEN + SIZED),
            proposer=drafter,
            predict=predict,
            num_probes=len(PUBLISHED),
        )
        request = Request(prompt=(7,) * GIVEN, max_tokens=SIZED, sampling=Sampling(temperature=0.0))
        (seq,) = run_load(engine, [0.0], [request])
        if (self.text or seq.tokens) != seq.tokens:
            raise InvariantError("drafts changed the text", expected="the text of plain decoding")
        self.text = seq.tokens
        return seconds([seq])

    def guess(self, text: Text, scores_cV: Floats, position: int, ranks: int) -> list[list[int]]:
        """See `Guess`: of the text that plain decoding gave."""
        ahead = [*self.text, *[0] * len(PUBLISHED)][position : position + len(scores_cV)]
        return [ranked(right, position, level, ranks, 0) for level, right in enumerate(ahead)]


@contextmanager
def this_machine() -> Iterator[Machine]:
    model = load_compiled(random_llama(), precision=Stored())
    try:
        model.set_probes(np.zeros((len(PUBLISHED), model.spec.hidden_size), np.float32))
        yield Machine(model, measure_rows(model, 64))
    finally:
        model.close()


@claim(
    "ppd",
    title="tokens/s of the tree chosen by this machine's row times, over the best of eleven sizes, 184M",
    paper="- (our bar 0.95)",
    expect=0.95,
    within=0.0,
    bound="at least",
    mode="real",
)
def chosen_for_this_machine(lab: Lab) -> Measured:
    with this_machine() as machine:
        machine.decode(None, free)
        fixed = {n: PromptDrafter(PPD(k=n), PUBLISHED, machine.guess) if n else None for n in TRIED}
        took: dict[int, list[float]] = {n: [] for n in TRIED}
        chosen: list[float] = []
        for _ in range(ROUNDS):
            chosen.append(machine.decode(fixed[MAX_NODES], machine.times.predict))
            for n, drafter in fixed.items():
                took[n].append(machine.decode(drafter, free))
    best = min(TRIED, key=lambda n: median(took[n]))
    ratios = [a / b for a, b in zip(took[best], chosen, strict=True)]
    note = f"[{min(ratios):.2f}, {max(ratios):.2f}], n={ROUNDS}; the best has {best} rows; "
    return Measured(median(ratios), note + f"{median(took[0]) / median(chosen):.2f}x no drafts")


@claim(
    "ppd",
    title="rows of the best tree on an H200, over those on this CPU by its row times, 184M",
    paper="one tree does not suit all hardware (our bar 1.1)",
    expect=1.1,
    within=0.0,
    bound="at least",
    mode="real",
)
def another_tree_elsewhere(lab: Lab) -> Measured:
    tokens = [found.tokens_per_step for found in all_trees(PUBLISHED, MAX_NODES)]
    with this_machine() as machine:
        here = best_rows(tokens, by_rows(machine.times.predict, HERE))
        there = best_rows(tokens, by_rows(predicted(priced(machine.model.spec, "sim:h200")), HERE))
    return Measured(there / max(1, here), f"{there} and {here}")
