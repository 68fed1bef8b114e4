"""What claims' own small models are trained and judged on: chats of PlanWorld, drawn by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from random import Random

import torch
from tokenizers import Tokenizer

from lightwork.agents.worlds import Split
from lightwork.agents.worlds.lessons import WORDS, Lessons
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.train.vocabulary import build_tokenizer


@cache
def words() -> Tokenizer:
    return build_tokenizer(WORDS, SYLLABLES)


def lessons(name: str, batch_size: int, split: Split = "train") -> Lessons:
    """Chats without end, the same ones for one name."""
    return Lessons(
        tokenizer=words(),
        rng=Random(name),
        world=PlanWorld(split=split),
        batch_size=batch_size,
        max_len=512,
        gap_share=0.0,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Of torch: products this small gain nothing from more, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
