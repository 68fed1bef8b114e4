"""N-gram speculation: what followed these tokens last time may follow them again.

Paper:  "Prompt Lookup Decoding", 2023 (a published program), and "Lossless Acceleration for Seq2seq
        Generation with Aggressive Decoding", 2022
Idea:   find where the last n tokens stood first, for the greatest n; draft the k tokens that came after them
Shapes: text of t tokens -> chain of at most k nodes
Cost:   one byte search per tried n, O(t); no model, no memory
Claims: -
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.decode.acceptance import chain_gain
from lightwork.decode.proposers import MAX_NODES, Draft, Effort, Target, Text
from lightwork.decode.proposers._lookup import WIDTH, first, packed
from lightwork.decode.verifiers import Verdict
from lightwork.errors import RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ngram:
    """Drafts up to k tokens that followed the longest repeated suffix of n_min to n_max tokens."""

    k: int = 4
    n_max: int = 6
    n_min: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_NODES:
            raise RangeError(
                f"Ngram cannot draft k={self.k} tokens", expected=f"1 <= k <= {MAX_NODES}", fix="Ngram(k=4)"
            )
        if not 1 <= self.n_min <= self.n_max:
            raise RangeError(
                f"Ngram cannot match {self.n_min} to {self.n_max} tokens",
                expected="1 <= n_min <= n_max",
                fix="Ngram(n_max=3, n_min=1)",
            )

    def begin(self, target: Target) -> Ngram:
        return self

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        return [
            Draft.chain(self._continuation(t.tokens, min(self.k, n)))
            for t, n in zip(texts, rows, strict=True)
        ]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Nothing to learn: the text itself is the model."""

    def forget(self, seq_id: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing runs."""

    def _continuation(self, tokens: list[int], limit: int) -> list[int]:
        if limit <= 0:
            return []
        text = packed(tokens)
        for n in range(min(self.n_max, len(tokens) - 1), self.n_min - 1, -1):
            found = first(text, text[-n * WIDTH :])
            if found < len(tokens) - n:
                return tokens[found + n : found + n + limit]
        return []
