"""What a model thinks before it answers, apart from the answer: text between <think> and </think>.

Models that think write so, and their chat templates have `enable_thinking`; some templates open the thought
in the prompt already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lightwork.models.tokenizer import Tokenizer

VARIABLE, OPEN, CLOSE = "enable_thinking", "<think>", "</think>"


class Thought(NamedTuple):
    """A piece of what is thought."""

    text: str


def can_think(tokenizer: Tokenizer) -> bool:
    """Whether the model's chat template lets a request choose."""
    return VARIABLE in (tokenizer.chat_template or "")


def opened(prompt: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the prompt ends within a thought."""
    return tokenizer.decode(list(prompt[-16:])).rstrip().endswith(OPEN)


class ThoughtParser:
    """Divides a text that comes in pieces. opened: whether it begins within a thought.

    White space around a thought is left out.
    """

    def __init__(self, *, opened: bool) -> None:
        self._place: Literal["start", "thought", "gap", "answer"] = "thought" if opened else "start"
        self._held = ""
        self._begun = False

    def push(self, text: str) -> list[Thought | str]:
        """What is certain by now, in order."""
        self._held += text
        if self._place == "start":
            self._start()
        found: list[Thought | str] = []
        if self._place == "thought" and (thought := self._thought()):
            found.append(Thought(thought))
        if self._place == "gap":
            self._held = self._held.lstrip()
            self._place = "answer" if self._held else "gap"
        if self._place == "answer" and self._held:
            found.append(self._held)
            self._held = ""
        return found

    def finish(self) -> list[Thought | str]:
        """What was held back, in a text that has ended."""
        rest, self._held = self._held, ""
        if self._place == "thought":
            return [Thought(rest.rstrip())] if rest.strip() else []
        return [rest] if rest and self._place == "start" else []

    def _start(self) -> None:
        begin = self._held.lstrip()
        if begin.startswith(OPEN):
            self._place, self._held = "thought", begin.removeprefix(OPEN)
        elif not OPEN.startswith(begin):
            self._place = "answer"

    def _thought(self) -> str:
        """What of it is certain: neither its last white space nor what may become its end."""
        text = self._held if self._begun else self._held.lstrip()
        thought, closed, after = text.partition(CLOSE)
        if closed:
            self._place, self._held = "gap", after
            return thought.rstrip()
        end = next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:n])), 0)
        ready = text[: len(text) - end].rstrip()
        self._held, self._begun = text[len(ready) :], self._begun or bool(ready)
        return ready
