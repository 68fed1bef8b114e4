"""Proposers beside plain decoding and beside other programs: what is asked, what is counted, what is timed.

The built-in pair answers questions on catalogues whose names it was never trained on, greedily, one request
after another. `lightwork bench speculate` prints what `compare` returns; `benchmarks/speculate_peers.py` asks
other programs the same and keeps each row in claims/speculate_peers.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Protocol

from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.decode.sampling import Sampling
from lightwork.errors import InvariantError, SpecError
from lightwork.models import resolve
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load

TARGET, PLAIN, COPIES, NEW = "tiny:llama", "plain", "copy", "ordinary"
PROPOSERS = (
    "Ngram(k=4)",
    "Ngram(k=8)",
    "Copy(k=4)",
    "DraftModel(k=4)",
    "Cascade()",
    "Pearl(inner=DraftModel(k=4))",
    "EasySpec(inner=DraftModel(k=4))",
    "PPD(k=32)",
)
"""What is compared, as `--use` takes it; another proposer is one more text."""
BAR = 1.5
"""Tokens per second over plain decoding that the best of them is to reach where there is much to copy."""
KEPT = 0.95
"""What each of them is to keep of plain decoding's tokens per second where nothing stands in the prompt."""
TASKS = {
    COPIES: "a question is asked a second time: its answer stands in the prompt",
    NEW: "a question is asked for the first time",
}
CHATS, MAX_LEN, MAX_TOKENS = 12, 1024, 192
RECORD = Path(__file__).parent / "speculate_peers.json"

Prompt = tuple[int, ...]


def prompts(task: str, number: int = 0) -> list[Prompt]:
    """The chats of a task, each with a catalogue of its own. number: which of the many sets of them."""
    rng, tokenizer = Random(f"{task} {number}"), Tokenizer(resolve(TARGET))
    return [tuple(tokenizer.chat(_messages(task, rng))) for _ in range(CHATS)]


def _messages(task: str, rng: Random) -> list[dict[str, str]]:
    """Two questions with their answers, then the first again; or one, then another."""
    episodes = PlanWorld(split="heldout").dialogue(rng, (3, 2) if task == COPIES else (2, 3))
    turns = [turn for e in episodes for turn in (("user", e.prompt), ("assistant", e.gold))]
    if task == COPIES:
        turns.append(("user", episodes[0].prompt.rpartition("\n")[2]))
    else:
        del turns[-1]
    return [{"role": role, "content": content} for role, content in turns]


@dataclass(frozen=True, slots=True)
class Run:
    """texts: that came out. steps: passes of the target, those over prompts too. drafted: rows of drafts in
    them. seconds: from the first request to the last token.
    """

    texts: list[list[int]]
    steps: int
    drafted: int
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps

    @property
    def rows_per_step(self) -> float:
        return self.drafted / self.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One proposer on one task. all: if every draft gets all rows that the proposer can use; depends on no
    clock. served: with the rows that pay on this machine. tokens_per_s: after the first of each text, whose
    time is that of the prompt. over_plain: median, least and greatest ratio of them.
    """

    task: str
    use: str
    tokens_per_step: float
    rows_per_step: float
    served_tokens_per_step: float
    served_rows_per_step: float
    tokens_per_s: float
    over_plain: tuple[float, float, float]


class Ask(Protocol):
    """Answers prompts one after another, each to its end, or to a length."""

    def __call__(self, asked: Sequence[Prompt], lengths: Sequence[int] | None = None) -> Run: ...


@contextmanager
def served(use: str, *, all_rows: bool = False) -> Iterator[Ask]:
    """The target with one proposer, open for any number of runs.

    all_rows: rows are taken to cost nothing. Raises SpecError unless `use` is a proposer or `plain`.
    """
    techniques = () if use == PLAIN else (use,)
    plan = Plan(model=TARGET, use=techniques, max_len=MAX_LEN, max_seqs=1, prefix_cache=False, threads=1)
    if list(plan.techniques()) != ["proposer"] * len(techniques):
        raise SpecError(f"{use} guesses no tokens", expected="a proposer", fix="--use 'Ngram(k=4)'")
    told: dict[str, Any] = {"predict": lambda step: 1.0} if all_rows else {}
    engine, model, _ = open_one(plan, Kernel(WallClock()), **told)
    model.warm_up()
    try:
        yield partial(_ask, engine, Tokenizer(resolve(TARGET)).eos_ids)
    finally:
        engine.close()
        model.close()


def _ask(
    engine: Engine, ends: frozenset[int], asked: Sequence[Prompt], lengths: Sequence[int] | None = None
) -> Run:
    greedy = Sampling(temperature=0.0)
    requests = [
        Request(prompt=prompt, max_tokens=most, sampling=greedy, stop_ids=ends)
        for prompt, most in zip(asked, lengths or [MAX_TOKENS] * len(asked), strict=True)
    ]
    steps, begin_s = engine.steps, engine.kernel.now()
    seqs = run_load(engine, [0.0] * len(requests), requests)
    texts = [seq.tokens[seq.prompt_len :] for seq in seqs]
    drafted = sum(seq.drafted for seq in seqs)
    return Run(texts, engine.steps - steps, drafted, engine.kernel.now() - begin_s)


def count(use: str, tasks: Sequence[str] = (*TASKS,)) -> dict[str, Run]:
    """What a proposer comes to on the first chats of each task, with all rows that it can use."""
    with served(use, all_rows=True) as ask:
        return {task: ask(prompts(task)) for task in tasks}


def compare(
    uses: Sequence[str] = PROPOSERS, rounds: int = 5, tasks: Sequence[str] = (*TASKS,)
) -> list[Beside]:
    """Each proposer on each task, interleaved with plain decoding, each round with chats of its own.

    Raises SpecError for what is no proposer, InvariantError if one changes a text.
    """
    uses = (PLAIN, *uses)
    counted = {use: count(use, tasks) for use in uses}
    runs: dict[tuple[str, str], list[Run]] = {each: [] for each in product(tasks, uses)}
    with ExitStack() as stack:
        asks = {use: stack.enter_context(served(use)) for use in uses}
        for number, task in product(range(rounds), tasks):
            asked = prompts(task, number)
            for use in uses if number % 2 == 0 else uses[::-1]:
                runs[task, use].append(_decode(asks[use], asked))
    for task, use in runs:
        _same(use, [counted[PLAIN][task], *runs[task, PLAIN]], [counted[use][task], *runs[task, use]])
    return [
        _beside(task, use, counted[use][task], mine, runs[task, PLAIN]) for (task, use), mine in runs.items()
    ]


def _decode(ask: Ask, asked: Sequence[Prompt]) -> Run:
    """A run with the seconds that it takes longer than one to the first tokens, the lesser of two: a slow one
    would flatter."""
    ones = [1] * len(asked)
    before_s, run, after_s = ask(asked, ones).seconds, ask(asked), ask(asked, ones).seconds
    return replace(run, seconds=run.seconds - min(before_s, after_s))


def _same(use: str, plain: Sequence[Run], mine: Sequence[Run]) -> None:
    if [run.texts for run in plain] != [run.texts for run in mine]:
        raise InvariantError(f"{use} gave other texts than plain decoding", expected="equal texts")


def _beside(task: str, use: str, counted: Run, mine: Sequence[Run], plain: Sequence[Run]) -> Beside:
    ratios = [b.seconds / a.seconds for a, b in zip(mine, plain, strict=True)]
    steps = sum(run.steps for run in mine)
    return Beside(
        task=task,
        use=use,
        tokens_per_step=counted.tokens_per_step,
        rows_per_step=counted.rows_per_step,
        served_tokens_per_step=sum(run.tokens for run in mine) / steps,
        served_rows_per_step=sum(run.drafted for run in mine) / steps,
        tokens_per_s=median((run.tokens - len(run.texts)) / run.seconds for run in mine),
        over_plain=(median(ratios), min(ratios), max(ratios)),
    )
