"""Cascade: the first proposer that has something to say, for each text and step anew.

Paper:  "Cascade Speculative Drafting for Even Faster LLM Inference", 2023 (NeurIPS 2024; its statistical
        drafter, which costs nothing, beside a draft model)
Idea:   copies are found by looking them up, and a small model says the rest: ask in this order
Shapes: one draft per text, of the first proposer whose draft is not empty
Cost:   the first's for every text, the second's for those that the first leaves
Claims: -
Differs: two proposers one after the other, each for a whole draft; the paper also mixes them within one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightwork.decode.acceptance import chain_gain
from lightwork.decode.proposers import Draft, Drafter, Effort, Proposer, Target, Text
from lightwork.decode.proposers.draft_model import DraftModel
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.verifiers import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """first: is asked for every draft. then: is asked where the first has none."""

    first: Proposer = field(default_factory=lambda: Ngram(k=4, n_min=8, n_max=8))
    then: Proposer = field(default_factory=DraftModel)

    def begin(self, target: Target) -> Both:
        return Both(self, self.first.begin(target), self.then.begin(target))


@dataclass(slots=True)
class Both:
    """The two at work for one engine; each is told of every text, whoever guessed."""

    how: Cascade
    first: Drafter
    then: Drafter

    def __repr__(self) -> str:
        return repr(self.how)

    @property
    def k(self) -> int:
        return max(self.first.k, self.then.k)

    @property
    def effort(self) -> Effort:
        """As if both were asked for every text."""
        one, other = self.first.effort, self.then.effort
        return Effort(
            passes=one.passes + other.passes,
            beside=one.beside or other.beside,
            least=max(one.least, other.least),
        )

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        drafts = self.first.propose(texts, rows)
        left = [i for i, draft in enumerate(drafts) if not draft]
        if left:
            more = self.then.propose([texts[i] for i in left], [rows[i] for i in left])
            for i, draft in zip(left, more, strict=True):
                drafts[i] = draft
        return drafts

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        self.first.accept(texts, verdicts)
        self.then.accept(texts, verdicts)

    def forget(self, seq_id: int) -> None:
        self.first.forget(seq_id)
        self.then.forget(seq_id)

    def close(self) -> None:
        self.first.close()
        self.then.close()
