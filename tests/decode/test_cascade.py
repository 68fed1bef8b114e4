"""Cascade: the second proposer is asked for those texts only that the first has nothing for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightwork.decode.proposers import Draft, Effort, Target, Text
from lightwork.decode.proposers.cascade import Both, Cascade
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.sampling import Sampling
from lightwork.decode.verifiers import Verdict


@dataclass
class Said:
    """A text as proposers see it."""

    tokens: list[int]
    id: int = 0
    prompt_len: int = 1
    sampling: Sampling = field(default_factory=Sampling)


@dataclass
class Counting:
    """Guesses 1, 2, 3, ... and remembers for which texts."""

    k: int = 6
    asked: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)

    def begin(self, target: Target | None) -> Counting:
        return self

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return [rate] * self.k

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        self.asked += [text.id for text in texts]
        return [Draft.chain(range(1, num + 1)) for num in rows]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        self.told += [text.id for text in texts]

    def forget(self, seq_id: int) -> None:
        self.forgotten.append(seq_id)

    def close(self) -> None:
        """Nothing runs."""


def test_only_texts_that_the_first_has_nothing_for_are_asked_of_the_second():
    how, then = Cascade(first=Ngram(k=4, n_min=2)), Counting()
    both = Both(how, Ngram(k=4, n_min=2), then)
    texts = [Said([5, 6, 7], id=0), Said([5, 6, 7, 5, 6], id=1), Said([9], id=2)]
    assert both.propose(texts, [3, 2, 1]) == [Draft.chain([1, 2, 3]), Draft.chain([7, 5]), Draft.chain([1])]
    assert then.asked == [0, 2]


def test_both_are_told_what_became_of_every_text():
    first, then = Counting(k=2), Counting(k=6)
    both = Both(Cascade(), first, then)
    both.accept([Said([1], id=4)], [Verdict((), ())])
    both.forget(4)
    assert first.told == then.told == first.forgotten == then.forgotten == [4]
    assert both.k == 6
    assert both.gain(Said([1]), 0.5) == tuple(0.5**i for i in range(1, 7))
    assert repr(both) == repr(Cascade())
