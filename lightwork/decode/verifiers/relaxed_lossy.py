"""Relaxed and lossy: a drafted token also stands where the target finds it nearly as good as its own.

Paper:  "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", 2022 (GAD++)
Idea:   a guess is kept if it is among the target's `beta` most probable tokens and its log-probability within
        `tau` of the first one's
Shapes: Draft of n nodes, pick(node) -> Verdict with 1..depth+1 tokens
Cost:   one pick per row on the path, and the beta most probable tokens of each
Claims: aggressive_decoding
Differs: it changes texts, and says so; where sampling has chosen another token than the most probable one,
         only that token stands
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from lightwork.decode.proposers import ROOT, Draft
from lightwork.decode.sampling import Pick
from lightwork.decode.verifiers import PickAt, Verdict
from lightwork.errors import RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxedLossy:
    """beta: tokens of a row that may stand; 1 is exact. tau: how much less probable they may be, in nats."""

    beta: int = 3
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.beta < 1 or not 0.0 <= self.tau < inf:
            raise RangeError(
                f"RelaxedLossy cannot keep the {self.beta} best tokens within {self.tau} nats",
                expected="beta >= 1 and tau >= 0",
                fix="RelaxedLossy(beta=3, tau=1.0)",
            )

    def verify(self, draft: Draft, pick: PickAt) -> Verdict:
        node = ROOT
        path: list[int] = []
        emitted: list[Pick] = []
        tokens: list[int] = []
        while True:
            choice = pick(node, tokens)
            child = draft.child(node, choice.token)
            if child is None and self.beta > 1 and node in draft.parents:
                choice, child = self._other(draft, node, choice, pick(node, tokens, self.beta).top)
            emitted.append(choice)
            tokens.append(choice.token)
            if child is None:
                return Verdict(tuple(emitted), tuple(path))
            path.append(child)
            node = child

    def _other(
        self, draft: Draft, node: int, choice: Pick, top: Sequence[tuple[int, float]]
    ) -> tuple[Pick, int | None]:
        """The most probable guess that may stand in place of the choice, if there is one."""
        (first, best), *others = top
        for token, logprob in others if first == choice.token else ():
            child = draft.child(node, token)
            if child is not None and logprob >= best - self.tau:
                told = None if choice.logprob is None else logprob
                return choice._replace(token=token, logprob=told), child
        return choice, None
