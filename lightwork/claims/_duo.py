"""The models on which Duo-LLM's claims are measured, and what oracles and routers do on text new to them.

Twelve layers, three million parameters, small MLPs of a quarter of the big ones' width; trained once on
PlanWorld's answers with random routing, in two minutes of one core. Oracles look at scored tokens one at a
time, behind a prefix whose rows are all big; routers and fixed patterns have the same context.

N tokens  P patterns  L layers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from lightwork.claims._chats import lessons, one_thread, words
from lightwork.claims._random_llama import written_once
from lightwork.models.duo import BIG, SKIP, SMALL, Duo
from lightwork.models.duo_oracle import Prefixes, every_pattern
from lightwork.models.duo_router import Gates
from lightwork.models.model import Model
from lightwork.models.spec import ModelSpec, Rope
from lightwork.models.tokenizer import Tokenizer
from lightwork.train.duo import initial_duo, read_duo, save_duo, train_duo
from lightwork.train.duo_router import fit_gates, tabulate
from lightwork.train.pretrain import Settings

LAYERS = 12
BUDGETS = range(1, LAYERS)
STEPS = 180
SMALL_WIDTH = 96
TOKENS_OF_TEXT = 10
LEARNT, JUDGED = 1000, 600
"""Tokens whose tables gates are fitted to, and tokens of other texts that everything is judged on."""
PATHS = 8
"""Of a token, for gates."""
RESAMPLES = 2000


def _spec(vocab_size: int) -> ModelSpec:
    return ModelSpec(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=128,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=4,
        head_size=32,
        ffn_size=4 * SMALL_WIDTH,
        max_len=512,
        rope=Rope(theta=500_000.0),
        qkv_bias=True,
        out_bias=True,
        tied=True,
    )


def folder(*, skips: bool = False) -> Path:
    """Where the trained model is; trained now if it is not there."""
    options = (SKIP, SMALL, BIG) if skips else (SMALL, BIG)
    return written_once("duo-3m-skips" if skips else "duo-3m", lambda part: _train(part, options))


def _train(part: Path, options: tuple[int, ...]) -> None:
    duo = initial_duo(_spec(words().get_vocab_size()), SMALL_WIDTH, 0)
    settings = Settings(steps=STEPS, learning_rate=3e-3, warmup_steps=20)
    with one_thread():
        for _ in train_duo(duo, lessons("train", 8), settings, options=options):
            pass
    save_duo(part, duo, words())


@cache
def trained(*, skips: bool = False) -> Duo:
    return read_duo(folder(skips=skips))


def small_model() -> Model:
    """The all-small path as a model of its own, of the same tensors."""
    duo = trained()
    return Model(duo.small_spec, duo.small, Tokenizer(folder()), {}, "cpu")


def texts(name: str) -> Iterator[tuple[Tensor, list[int]]]:
    """Chats without end, and of each some places behind which a scored token stands."""
    rng = Random(f"places {name}")
    for batch in lessons(name, 1):
        length = int(batch.positions_BT.max()) + 1
        scored = batch.scored_BT[0, 1:length].nonzero()[:, 0].tolist()
        yield batch.tokens_BT[0, :length], sorted(rng.sample(scored, min(TOKENS_OF_TEXT, len(scored))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Losses of tokens under all patterns of SMALL and BIG.

    losses [N, P]. patterns [P, L], num_big [P]. text [N]: which text a token is of. best_fixed, routed: of
    each budget 0 to L the pattern that was best on average on the learnt tokens, and the one that the
    router takes for each judged token [N].
    """

    losses: Tensor
    patterns: Tensor
    num_big: Tensor
    text: Tensor
    best_fixed: list[int]
    routed: list[Tensor]

    def of(self, budget: int) -> Tensor:
        """Losses [N, ...] of the patterns with so many big layers."""
        return self.losses[:, self.num_big == budget]

    def oracle(self, budget: int) -> Tensor:
        return self.of(budget).min(1).values

    def fixed(self, budget: int) -> Tensor:
        return self.losses[:, self.best_fixed[budget]]

    def random(self, budget: int) -> Tensor:
        return self.of(budget).mean(1)

    def router(self, budget: int) -> Tensor:
        return self.losses[torch.arange(len(self.losses)), self.routed[budget]]

    def interval(self, a_N: Tensor, b_N: Tensor) -> tuple[float, float]:
        """95 % of what the mean of a over that of b is, texts resampled: their tokens are not independent."""
        rng = torch.Generator().manual_seed(0)
        num_texts = int(self.text.max()) + 1
        sums = torch.zeros(num_texts, 2).index_add(0, self.text, torch.stack((a_N, b_N), 1))
        drawn = torch.randint(num_texts, (RESAMPLES, num_texts), generator=rng)
        totals = sums[drawn].sum(1)
        low, high = (totals[:, 0] / totals[:, 1]).quantile(torch.tensor([0.025, 0.975])).tolist()
        return low, high


@cache
@one_thread()
def found(seed: int) -> Found:
    """Everything of all patterns, at about 0.1 s for a token. seed: of texts, and of gates' paths."""
    patterns = every_pattern(LAYERS)
    num_big = (patterns == BIG).sum(1)
    rng = torch.Generator().manual_seed(seed)
    tables, lessons = [], []
    for _, prefixes, at in _tokens(f"gates {seed}", LEARNT):
        losses, lesson = tabulate(prefixes, at, LAYERS, torch.randint(len(patterns), (PATHS,), generator=rng))
        tables.append(losses)
        lessons.append(lesson)
    mean = torch.stack(tables).mean(0)
    fixed = [int(mean.masked_fill(num_big != k, torch.inf).argmin()) for k in range(LAYERS + 1)]
    gates = fit_gates(lessons).gates
    judged, text, routed = [], [], []
    for number, prefixes, at in _tokens(f"judged {seed}", JUDGED):
        judged.append(prefixes.losses(at, patterns))
        text.append(number)
        routed.append(_routes(gates, prefixes, at))
    return Found(
        losses=torch.stack(judged),
        patterns=patterns,
        num_big=num_big,
        text=torch.tensor(text),
        best_fixed=fixed,
        routed=list(torch.tensor(routed).T),
    )


def _tokens(name: str, num: int) -> Iterator[tuple[int, Prefixes, int]]:
    """(number of the text, its prefixes, the place of a token) of so many tokens."""
    left = num
    for number, (tokens_T, places) in enumerate(texts(name)):
        prefixes = Prefixes(trained(), tokens_T)
        for at in places[:left]:
            yield number, prefixes, at
        left -= len(places[:left])
        if not left:
            return


def _routes(gates: Gates, prefixes: Prefixes, at: int) -> list[int]:
    """Of each budget, where the router's pattern stands among all."""
    budgets = torch.arange(LAYERS + 1)
    patterns = prefixes.route(at, gates.choose(budgets), len(budgets))
    places = 2 ** torch.arange(LAYERS - 1, -1, -1)
    found: list[int] = ((patterns == BIG) * places).sum(1).tolist()
    return found


def worst(ratio: Callable[[int], float]) -> tuple[int, float]:
    """The budget from 1 to L - 1 at which a ratio is greatest, and the ratio."""
    budget = max(BUDGETS, key=ratio)
    return budget, ratio(budget)
