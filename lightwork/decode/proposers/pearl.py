"""PEARL: the next draft is written while the target judges the last one.

Paper:  "PEARL: Parallel Speculative Decoding with Adaptive Draft Length", 2024 (ICLR 2025)
Idea:   assume that a draft holds and write on from there beside the target's pass; if it held, the next one
        is there already, less the token that the target has said itself
Shapes: chains of k - 1 nodes of the k written beside the step before, k where some had to wait for rows
Cost:   a step takes the longer of the target's pass and k of the drafter's; messages of 2k + 2 numbers
Claims: pearl
Differs: around any proposer, for each sequence of a batch by itself; guesses are verified by equality
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lightwork.decode.acceptance import chain_gain
from lightwork.decode.constraints import Matcher
from lightwork.decode.proposers import ROOT, Draft, Drafter, Effort, Proposer, Target, Text
from lightwork.decode.proposers._agreement import agreement
from lightwork.decode.proposers.draft_model import DraftModel
from lightwork.decode.sampling import Sampling
from lightwork.decode.verifiers import Verdict
from lightwork.errors import RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pearl:
    """inner: who writes drafts, k tokens at a time: as many as take it about as long as a step takes.

    A sequence without a draft (pre-verify) goes on once the target has said the first token of what is
    written meanwhile; then (post-verify) drafts follow each other until one is wrong.
    """

    inner: Proposer = field(default_factory=DraftModel)

    def __post_init__(self) -> None:
        if isinstance(self.inner, Pearl):
            raise RangeError(
                "Pearl around Pearl",
                expected="a proposer that writes drafts",
                fix="Pearl(inner=DraftModel(k=4))",
            )

    def begin(self, target: Target) -> Ahead:
        return Ahead(self, self.inner.begin(replace(target, put_probes=None)), target)


class Edit(NamedTuple):
    """What the writer is told of a text: keep so many tokens, put these behind them, then write `num`."""

    id: int
    keep: int
    tokens: tuple[int, ...]
    num: int


@dataclass(slots=True)
class _Copy:
    """A text as the writer has it, guesses included."""

    id: int
    tokens: list[int]
    prompt_len: int
    sampling: Sampling
    matcher: Matcher | None = None


class Writer:
    """The drafter on the executor beside: it has copies of the texts, and is told how they change."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._texts: dict[int, _Copy] = {}

    def open(self, seq_id: int, tokens: list[int], prompt_len: int, sampling: Sampling) -> None:
        self._texts[seq_id] = _Copy(seq_id, tokens, prompt_len, sampling)

    def write(self, edits: Sequence[Edit]) -> list[tuple[int, ...]]:
        """What the drafter would say next in each text; it is put behind it."""
        texts = [self._texts[edit.id] for edit in edits]
        for text, edit in zip(texts, edits, strict=True):
            del text.tokens[edit.keep :]
            text.tokens += edit.tokens
        drafts = self._drafter.propose(texts, [edit.num for edit in edits])
        written = [_first_chain(draft) for draft in drafts]
        for text, tokens in zip(texts, written, strict=True):
            text.tokens += tokens
        return written

    def forget(self, seq_id: int) -> None:
        del self._texts[seq_id]
        self._drafter.forget(seq_id)

    def close(self) -> None:
        self._drafter.close()


@dataclass(slots=True)
class _Turn:
    """What is being written. known: tokens of the text when it began. guess: those assumed to follow.

    behind: resolves to what is written behind the guess, for each text of the step. at: which is this one.
    """

    known: int
    guess: list[int]
    behind: Future[list[tuple[int, ...]]]
    at: int


class Ahead:
    """Hands out what was written beside the last step, and has the next written."""

    def __init__(self, how: Pearl, drafter: Drafter, target: Target) -> None:
        self._how = how
        self._k = drafter.k
        self._effort = replace(drafter.effort, beside=True, least=drafter.k)
        self._writer = Writer(drafter)
        self._beside = target.beside
        self._turns: dict[int, _Turn] = {}

    def __repr__(self) -> str:
        return repr(self._how)

    @property
    def k(self) -> int:
        return self._k

    @property
    def effort(self) -> Effort:
        return self._effort

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self._k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        drafts, edits, guesses = [], [], []
        for text, most in zip(texts, rows, strict=True):
            keep, guess = self._held(text)
            drafts.append(Draft.chain(guess[:most]))
            num = min(self._k, 2 * self._k - 1 - len(guess))  # less where steps had no rows for the last ones
            edits.append(Edit(text.id, keep, tuple(text.tokens[keep:]), num))
            guesses.append(guess)
        behind = self._beside.submit(self._writer.write, edits)
        for at, (text, guess) in enumerate(zip(texts, guesses, strict=True)):
            self._turns[text.id] = _Turn(len(text.tokens), guess, behind, at)
        return drafts

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """The texts say what was kept."""

    def forget(self, seq_id: int) -> None:
        if self._turns.pop(seq_id, None) is not None:
            self._beside.submit(self._writer.forget, seq_id)

    def close(self) -> None:
        self._beside.submit(self._writer.close)
        self._beside.shutdown()

    def _held(self, text: Text) -> tuple[int, list[int]]:
        """How much of the writer's copy holds, and what of it is still to be judged."""
        turn = self._turns.get(text.id)
        if turn is None:
            self._beside.submit(self._writer.open, text.id, [*text.tokens], text.prompt_len, text.sampling)
            return len(text.tokens), []
        guess = [*turn.guess, *turn.behind.result()[turn.at]]
        said = text.tokens[turn.known :]
        num = agreement(guess, said)
        if num == len(said):
            return turn.known + len(guess), guess[num:]
        return turn.known + num, []


def _first_chain(draft: Draft) -> tuple[int, ...]:
    """Of a tree, the path of first children."""
    node, tokens = ROOT, []
    for i, parent in enumerate(draft.parents):
        if parent == node:
            tokens.append(draft.tokens[i])
            node = i
    return tuple(tokens)
