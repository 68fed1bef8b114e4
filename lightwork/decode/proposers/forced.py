"""Forced: the tokens that a grammar leaves no choice about, many in one step.

Paper:  "SGLang: Efficient Execution of Structured Language Model Programs", 2023 (its compressed state
        machine, which jumps over what is certain)
Idea:   where a constraint allows one text only, it is drafted; `{"name": "` costs one step, not five
Shapes: text of t tokens -> chain of at most k nodes, none without a constraint
Cost:   a walk of the parser over the certain bytes, microseconds; no model, no memory
Claims: -
Differs: the tokens are verified like any guess instead of written into the text, so they are those of plain
         decoding under the same constraint; all of them hold
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.decode.proposers import MAX_NODES, Draft, Effort, Target, Text
from lightwork.decode.verifiers import Verdict
from lightwork.errors import ConstraintError, RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Forced:
    """Drafts up to k tokens that are certain; beside a `Cascade` of others, nothing where none is."""

    k: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_NODES:
            raise RangeError(
                f"Forced cannot draft k={self.k} tokens",
                expected=f"1 <= k <= {MAX_NODES}",
                fix="Forced(k=16)",
            )

    def begin(self, target: Target) -> Forced:
        return self

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> list[float]:
        return [1.0] * len(self._certain(text))

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        return [Draft.chain(self._certain(text)[:n]) for text, n in zip(texts, rows, strict=True)]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Nothing to learn: it was certain."""

    def forget(self, seq_id: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing runs."""

    def _certain(self, text: Text) -> list[int]:
        if text.matcher is None:
            return []
        try:
            return text.matcher.forced(text.tokens[text.prompt_len :])[: self.k]
        except ConstraintError:  # the scores of this step will tell
            return []
