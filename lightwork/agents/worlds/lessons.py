"""Episodes of PlanWorld as token sequences to train and to score on.

A sequence is a chat: one catalogue and as many questions about it as fit, each answered. Only answers are
scored. Some sequences have a gap in their positions between two turns, so that distances up to the whole
context are met in training without sequences of that length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from tokenizers import Tokenizer

from lightwork.agents.worlds import Episode
from lightwork.agents.worlds.plan_world import ATTRIBUTES, ENTITIES, OPERATIONS, RELATIONS, PlanWorld
from lightwork.train.pretrain import Batch

WORDS = [
    *(f" {w}" for w in (*ATTRIBUTES, *RELATIONS, *OPERATIONS, *ENTITIES)),
    *("tools:", "question:", "\n-", " of", " and", " (", " )", " join()"),
    *(f"{start}{i}." for i in range(1, 25) for start in ("", "\n")),
    *(f" ${i}" for i in range(1, 25)),
]
"""The tokens of PlanWorld besides syllables."""


@dataclass(slots=True, kw_only=True)
class Lessons:
    """Batches of one chat per sequence. top: the hardest level now, raised by whoever watches the score.
    odds: of each level, in proportion; by default the hardest is drawn three times as often as each other.

    batch_size sequences of seq_len tokens; max_len: positions reach up to this.
    """

    tokenizer: Tokenizer
    rng: Random
    world: PlanWorld
    batch_size: int = 8
    seq_len: int = 256
    max_len: int = 2048
    gap_share: float = 0.1
    top: int = 1
    odds: Sequence[int] = ()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch()

    def batch(self) -> Batch:
        rows = [self._row() for _ in range(self.batch_size)]
        tokens, positions, scored = zip(*rows, strict=True)
        return Batch(
            tokens_BT=torch.tensor(tokens),
            positions_BT=torch.tensor(positions),
            scored_BT=torch.tensor(scored),
        )

    def _row(self) -> tuple[list[int], list[int], list[bool]]:
        odds = self.odds or [1] * (self.top - 1) + [3]
        drawn = self.rng.choices(range(1, len(odds) + 1), odds, k=10)
        tokens, scored, starts = chat(self.tokenizer, self.world.dialogue(self.rng, drawn))
        del tokens[self.seq_len :], scored[self.seq_len :]
        positions = list(range(len(tokens)))
        starts = [s for s in starts if s < len(tokens)]
        if self.rng.random() < self.gap_share and starts:
            at, gap = self.rng.choice(starts), self.rng.randrange(self.max_len - len(tokens))
            positions[at:] = range(at + gap, len(tokens) + gap)
        pad = self.seq_len - len(tokens)
        return tokens + [0] * pad, positions + [0] * pad, scored + [False] * pad


def asked(tokenizer: Tokenizer, world: PlanWorld, rng: Random, num: int) -> list[list[int]]:
    """Chats of up to three turns, of all levels, each up to where an answer begins."""

    def each() -> Iterator[list[int]]:
        while True:
            tokens, scored, _ = chat(tokenizer, world.dialogue(rng, rng.choices((1, 2, 3), k=3)))
            yield from (tokens[:i] for i in range(1, len(tokens)) if scored[i] and not scored[i - 1])

    return [*islice(each(), num)]


def chat(tokenizer: Tokenizer, episodes: Sequence[Episode]) -> tuple[list[int], list[bool], list[int]]:
    """Tokens of a chat as the chat template writes it, which are scored, and where user turns begin."""
    texts = [t for e in episodes for t in (f"<|user|>{e.prompt}<|end|><|assistant|>", f"{e.gold}<|end|>")]
    texts[0] = f"<|bos|>{texts[0]}"
    tokens: list[int] = []
    scored: list[bool] = []
    starts: list[int] = []
    for i, encoding in enumerate(tokenizer.encode_batch(texts)):
        if i % 2 == 0 and i > 0:
            starts.append(len(tokens))
        tokens += encoding.ids
        scored += [i % 2 == 1] * len(encoding.ids)
    return tokens, scored, starts
