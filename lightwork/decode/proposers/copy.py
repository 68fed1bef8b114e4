"""Copy: input-guided aggressive decoding, for outputs that repeat most of their prompt.

Paper:  "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", 2022 (IAD)
Idea:   draft what is left of the source; behind a difference, go on after the only place in the source where
        the last one, two or three output tokens stand
Shapes: source of s tokens, output of t -> chain of at most k nodes
Cost:   one pass over source and output and up to six searches of bytes, O(s + t); no model, no memory
Claims: aggressive_decoding
Differs: the source is the prompt of a decoder, or a span of it, instead of an encoder's input; it is drafted
         in parts of k tokens, and each part looks up anew where it is
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.decode.acceptance import chain_gain
from lightwork.decode.proposers import MAX_NODES, Draft, Effort, Target, Text
from lightwork.decode.proposers._lookup import last, packed
from lightwork.decode.verifiers import Verdict
from lightwork.errors import RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Drafts up to k tokens of the source: prompt[start:stop], both counted as Python's slices do.

    n_max: the most output tokens that are looked up.
    """

    k: int = MAX_NODES
    start: int = 0
    stop: int | None = None
    n_max: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_NODES:
            raise RangeError(
                f"Copy cannot draft k={self.k} tokens", expected=f"1 <= k <= {MAX_NODES}", fix="Copy(k=16)"
            )
        if self.n_max < 1:
            raise RangeError(f"Copy cannot look up {self.n_max} tokens", expected=">= 1", fix="Copy(n_max=3)")

    def begin(self, target: Target) -> Copy:
        return self

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        return [
            Draft.chain(self._continuation(t.tokens, t.prompt_len, min(self.k, n)))
            for t, n in zip(texts, rows, strict=True)
        ]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Nothing to learn: the output tells where it is."""

    def forget(self, seq_id: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing runs."""

    def _continuation(self, tokens: list[int], prompt_len: int, limit: int) -> list[int]:
        if limit <= 0:
            return []
        source, output = tokens[:prompt_len][self.start : self.stop], tokens[prompt_len:]
        at = len(output) if output == source[: len(output)] else self._entry(source, output)
        return source[at : at + limit]

    def _entry(self, source: list[int], output: list[int]) -> int:
        """Behind the only place where the output's end stands in the source; its end, if there is none."""
        text = packed(source)
        for n in range(1, min(self.n_max, len(output)) + 1):
            wanted = packed(output[-n:])
            found = last(text, wanted, len(source))
            if found < 0:
                break
            if last(text, wanted, found + n - 1) < 0:
                return found + n
        return len(source)
