"""A text that is known beforehand, and a drafter whose every token is right with the same probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.decode.acceptance import chain_gain
from lightwork.decode.proposers import Draft, Effort, Pass, Target, Text
from lightwork.decode.sampling import noise_key
from lightwork.decode.verifiers import Verdict
from lightwork.serve.sequence import Sequence as Seq

VOCAB_SIZE = 1000


def said(seq: Seq | Text, position: int) -> int:
    """What the target says there, whatever was said before: a script of simulated runners."""
    return noise_key(seq.sampling.seed, position) % VOCAB_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class IidDrafts:
    """Chains of k tokens, each what the target will say with probability `rate`, independently.

    model: whose passes they take, "" if none.
    """

    rate: float
    k: int
    model: str = ""

    def begin(self, target: Target) -> IidDrafts:
        return self

    @property
    def effort(self) -> Effort:
        return Effort(passes=(Pass(self.model),) if self.model else ())

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(self.rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        return [
            Draft.chain([self._token(text, len(text.tokens) + i) for i in range(min(num, self.k))])
            for text, num in zip(texts, rows, strict=True)
        ]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Its rate is what it is."""

    def forget(self, seq_id: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing runs."""

    def _token(self, text: Text, position: int) -> int:
        right = noise_key(~text.sampling.seed, position) < self.rate * 2.0**64
        return (said(text, position) + (not right)) % VOCAB_SIZE
