"""What an agent did to answer a question, as data to learn from: turns of calls, and what came back.

    Node       what a tree search tried; `answer_path` keeps the way from its root to its answer
    Trajectory one way: a serial one has one call in each turn, a layered one all that a turn can have

Steps are the calls in order, numbered from 1. The question is 0; the answer has the number after the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lightwork.agents.chat_model import Message, ToolCall
from lightwork.agents.replies import message_dict
from lightwork.agents.tool import Observation
from lightwork.errors import UsageError
from lightwork.models.tokenizer import Tokenizer
from lightwork.train.examples import Example

FINISH = "Finish"
"""The call that ends a trajectory; its argument `answer` is the answer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a model said at once. seen: its calls with what came back, in their order."""

    thought: str
    seen: tuple[Observation, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """thought: before the answer."""

    question: str
    turns: tuple[Turn, ...]
    answer: str
    thought: str = ""

    @property
    def steps(self) -> tuple[Observation, ...]:
        return tuple(step for turn in self.turns for step in turn.seen)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of each turn's steps."""
        numbers = iter(range(1, len(self.steps) + 1))
        return tuple(tuple(next(numbers) for _ in turn.seen) for turn in self.turns)

    def messages(self) -> tuple[Message, ...]:
        """As a chat, which Finish ends. Calls are numbered anew: call_1, call_2, ..."""
        return tuple(self._messages())

    def _messages(self) -> Iterator[Message]:
        yield Message("user", self.question)
        number = 0
        for turn in self.turns:
            calls = []
            for step in turn.seen:
                number += 1
                calls.append(ToolCall(f"call_{number}", step.call.name, step.call.arguments))
            yield Message("assistant", turn.thought, tuple(calls))
            for call, step in zip(calls, turn.seen, strict=True):
                yield Message("tool", step.text, call_id=call.id)
        end = ToolCall(f"call_{number + 1}", FINISH, {"answer": self.answer})
        yield Message("assistant", self.thought, (end,))


@dataclass(frozen=True, slots=True)
class Node:
    """One try of a tree search, after that of its parent. seen: None of the root, and where an answer was
    given instead of a call. answer: "" where the way goes on, or ends in nothing.
    """

    thought: str = ""
    seen: Observation | None = None
    answer: str = ""
    children: tuple[Node, ...] = ()


def answer_path(question: str, root: Node) -> Trajectory:
    """The way to the first answer, in the order of the search; what was tried beside it is dropped. Raises
    UsageError if there is none."""
    ways = [[root]]
    while ways:
        way = ways.pop()
        if way[-1].answer:
            turns = tuple(Turn(node.thought, (node.seen,)) for node in way if node.seen is not None)
            last = way[-1]
            return Trajectory(question, turns, last.answer, "" if last.seen is not None else last.thought)
        ways += [[*way, child] for child in reversed(way[-1].children)]
    raise UsageError("the search found no answer", expected="a node that has one")


def samples(trajectory: Trajectory) -> list[tuple[Message, ...]]:
    """One for each turn: the chat up to it. What is learnt is its last message."""
    messages = trajectory.messages()
    return [messages[: i + 1] for i, message in enumerate(messages) if message.role == "assistant"]


def example(sample: tuple[Message, ...], tokenizer: Tokenizer) -> Example:
    """A sample's tokens, only its last message's to be predicted. Raises UsageError for a template that
    writes a chat otherwise when it goes on."""
    messages = [message_dict(message) for message in sample]
    before = tokenizer.chat_text(messages[:-1])
    whole = tokenizer.chat_text(messages, add_generation_prompt=False)
    if not whole.startswith(before):
        raise UsageError("the model's template writes answers in a way that they cannot be told apart")
    asked, said = tokenizer.encode(before), tokenizer.encode(whole[len(before) :])
    return Example([*asked, *said], [False] * len(asked) + [True] * len(said))
