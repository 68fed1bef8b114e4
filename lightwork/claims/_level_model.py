"""The model that plays the number game in AgentScope's claims: trained on the game, and kept.

Two layers, 470,000 parameters. It is told who it is by a persona's tokens ("- level: 2") and reads what
won as any model does; it says a number with one decimal. That is drawn: 16.67 is learnt as 16.7 in two of
three cases and as 16.6 in the third, so that many players have the right mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from math import exp, floor, inf
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer as Words

from lightwork.claims._chats import one_thread
from lightwork.claims._random_llama import written_once
from lightwork.models.spec import ModelSpec, Rope
from lightwork.train.export import save_model
from lightwork.train.initial import initial_weights
from lightwork.train.pretrain import Batch, Settings, pretrain
from lightwork.train.vocabulary import build_tokenizer

RATIOS = (Fraction(1, 2), Fraction(2, 3))
"""Two of the paper's five."""
LEVELS = ("0", "1", "2", "inf")
WEIGHTS = (4, 1, 4, 1)
"""Of levels in training: repeating a number, or saying 0, is soon learnt."""
ROUNDS, BATCH = 8, 16
SETTINGS = (
    Settings(steps=4000, learning_rate=3e-3, warmup_steps=100),
    Settings(steps=1500, learning_rate=1e-3, warmup_steps=20),
)
"""Cosine decay with a warm restart (Loshchilov and Hutter, "SGDR", 2017)."""
WORDS = (
    *("-", " level:", *(f" {level}" for level in LEVELS), "first", " round", " won", " at", "/"),
    *(f"{lead}{part}" for r in RATIOS for lead, part in ((" ", r.numerator), ("", r.denominator))),
    *(f"{i}." for i in range(101)),
)


@cache
def words() -> Words:
    return build_tokenizer(WORDS, [])


def spec() -> ModelSpec:
    return ModelSpec(
        family="llama",
        vocab_size=words().get_vocab_size(),
        hidden_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_size=32,
        ffn_size=384,
        max_len=512,
        rope=Rope(theta=10_000.0),
        qkv_bias=True,
        out_bias=True,
        tied=True,
    )


def folder() -> Path:
    """Where the trained model is; trained now if it is not there, in nine minutes of one core."""
    return written_once("level-players", _train)


def _train(part: Path) -> None:
    weights, games = initial_weights(spec(), seed=0), batches("train")
    with one_thread():
        for settings in SETTINGS:
            for _ in pretrain(weights, spec(), games, settings):
                pass
    save_model(part, weights, spec(), words())


def batches(name: str) -> Iterator[Batch]:
    """Games of one player each, of any level, in which anything may win."""
    rng = Random(name)
    while True:
        rows = [_row(rng) for _ in range(BATCH)]
        length = max(len(tokens) for tokens, _ in rows)
        yield Batch(
            tokens_BT=torch.tensor([t + [0] * (length - len(t)) for t, _ in rows]),
            positions_BT=torch.arange(length).expand(BATCH, -1),
            scored_BT=torch.tensor([s + [False] * (length - len(s)) for _, s in rows]),
        )


def _row(rng: Random) -> tuple[list[int], list[bool]]:
    level = rng.choices(LEVELS, WEIGHTS)[0]
    ratio = rng.choice(RATIOS)
    text = f"<|bos|><|system|>- level: {level}<|end|>"
    tokens = [*ids(text)]
    scored = [False] * len(tokens)
    for i in range(ROUNDS):
        if i == 0 and rng.random() < 0.3:
            asked, mean = f"first round at {ratio}", 500.0
            if level == "0":
                mean = rng.uniform(0, 1000)
        else:
            won = round(
                1000 * float(ratio) * (rng.random() if rng.random() < 0.5 else exp(-rng.uniform(0, 6)))
            )
            asked, mean = f"{tenths(won)} won at {ratio}", won / float(ratio)
        power = inf if level == "inf" else int(level)
        said = min(1000, floor(mean * float(ratio) ** power + rng.random()))
        question = ids(f"<|user|>{asked}<|end|><|assistant|>")
        answer = ids(f"{tenths(said)}<|end|>")
        tokens += question + answer
        scored += [False] * len(question) + [True] * len(answer)
    return tokens, scored


def tenths(number: int) -> str:
    return f"{number // 10}.{number % 10}"


@cache
def ids(text: str) -> list[int]:
    """Tokens of a text; there are not many."""
    return list(words().encode(text).ids)
