"""PlanWorld in turns: calls are made, their results are seen, and the next calls are made with those.

A question compares two others of PlanWorld, so there is something to do at once. Its calls, one a turn in the
order of the gold plan, are the serial trajectory; conversion makes the layered one of it. A turn is written
as a plan is, but with the values that were seen in place of `$id`, and each result after its call's number:

    <|assistant|>1. height kamu e3      <|tool|>1. 37     <|assistant|>3. height kamu e17     ...
    2. parent lozi e3                   <|tool|>2. e17                                        5. join()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer

from lightwork.agents.chat_model import Message, ToolCall
from lightwork.agents.graph import Task, fill
from lightwork.agents.plan_text import PlanParser
from lightwork.agents.tool import Observation
from lightwork.agents.trajectories import Trajectory, Turn
from lightwork.agents.world_tools import ARGUMENTS
from lightwork.agents.worlds import Episode, lessons
from lightwork.agents.worlds.plan_world import (
    OPERATIONS,
    Call,
    Facts,
    PlanWorld,
    draw,
    english,
    episode,
    prompt,
)
from lightwork.train.pretrain import Batch

SMALL = ("sum", "maximum", "minimum", "gap")
"""Operations on the way to the answer: their results are numbers of 0 to 198."""
VALUES = tuple(str(i) for i in range(199))
LEVELS = (2, 3)
WORDS = [*lessons.WORDS, *(f" {value}" for value in VALUES)]
"""The tokens of PlanWorld, and one for each value that a later call may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """Level 2 compares two facts, level 3 two that take a call or two more."""

    world: PlanWorld

    def catalogue(self, rng: Random) -> dict[str, str]:
        """Of the world, with an operation that keeps values small."""
        while True:
            names = self.world.catalogue(rng)
            if any(word in SMALL for word in names):
                return names

    def sample(self, rng: Random, level: int, names: dict[str, str] | None = None) -> Episode:
        """One question; names: of the catalogue that it is about, a new one if not given."""
        names = names or self.catalogue(rng)
        inner = {word: name for word, name in names.items() if word in SMALL or word not in OPERATIONS}
        facts = Facts(rng.getrandbits(32))
        root = rng.choice([word for word in names if word in OPERATIONS])
        question = Call(root, (draw(rng, inner, level - 1), draw(rng, inner, level - 1)))
        return episode(prompt(names.items(), english(question)), names, question, facts)


def serial(asked: Episode) -> Trajectory:
    """The gold plan's calls, carried out one after another."""
    seen: list[Observation] = []
    results: dict[int, Any] = {}
    for task in PlanParser().push(asked.gold + "\n"):
        if isinstance(task, Task):
            args = fill(task.args, results)
            results[task.id] = asked.call(task.tool, args)
            call = ToolCall(f"call_{task.id}", task.tool, dict(zip(ARGUMENTS, args, strict=False)))
            seen.append(Observation(call, results[task.id]))
    return Trajectory(asked.question, tuple(Turn("", (one,)) for one in seen), seen[-1].text)


def messages(trajectory: Trajectory, words: Mapping[str, str]) -> Iterator[Message]:
    """Of its turns, as the planner writes and reads them. words: descriptions of tools, by name."""
    number = 0
    for turn in trajectory.turns:
        first = number + 1
        lines = []
        for number, step in enumerate(turn.seen, first):
            args = " ".join(map(str, step.call.arguments.values()))
            lines.append(f"{number}. {words[step.call.name]} {step.call.name} {args}")
        yield Message("assistant", "\n".join(lines))
        yield from (Message("tool", f"{i}. {step.text}") for i, step in enumerate(turn.seen, first))
    yield Message("assistant", f"{number + 1}. join()")


@dataclass(slots=True, kw_only=True)
class TurnLessons:
    """Batches of chats: a catalogue and as many questions about it as fit, each answered in turns. convert:
    serial trajectories to those that are to be learnt, None where nothing is.

    All of a chat's turns are predicted in one pass: the sum of the losses of its single-turn samples.
    """

    tokenizer: Tokenizer
    rng: Random
    world: Comparisons
    convert: Callable[[Trajectory], Trajectory | None]
    batch_size: int = 8
    seq_len: int = 320
    levels: tuple[int, ...] = LEVELS

    def __iter__(self) -> Iterator[Batch]:
        while True:
            rows = [self._row() for _ in range(self.batch_size)]
            tokens, scored = zip(*rows, strict=True)
            yield Batch(
                tokens_BT=torch.tensor(tokens),
                positions_BT=torch.arange(self.seq_len).expand(self.batch_size, -1),
                scored_BT=torch.tensor(scored),
            )

    def _row(self) -> tuple[list[int], list[bool]]:
        names = self.world.catalogue(self.rng)
        tokens, scored = self.tokenizer.encode("<|bos|>").ids, [False]
        while len(tokens) < self.seq_len:
            asked = self.world.sample(self.rng, self.rng.choice(self.levels), names)
            shown = self.convert(serial(asked))
            if shown is None:
                continue
            said = asked.prompt if len(tokens) == 1 else prompt((), asked.question)
            for text, learnt in _texts([Message("user", said), *messages(shown, asked.tools)]):
                ids = self.tokenizer.encode(text).ids
                tokens += ids
                scored += [learnt] * len(ids)
        return tokens[: self.seq_len], scored[: self.seq_len]


def _texts(said: list[Message]) -> Iterator[tuple[str, bool]]:
    """As the chat template writes them, with whether each text is to be learnt."""
    for message in said:
        yield f"<|{message.role}|>", False
        yield f"{message.content}<|end|>", message.role == "assistant"
