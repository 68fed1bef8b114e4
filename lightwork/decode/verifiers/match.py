"""Match verification: keep a drafted token only where the target would have chosen it.

Paper:  "Fast Inference from Transformers via Speculative Decoding", 2022 (the problem; verification by
        equality is ours)
Idea:   the target's choice is a pure function of (logits, seed, position), so a guess is right or wrong,
        never likely
Shapes: Draft of n nodes, pick(node) -> Verdict with 1..depth+1 tokens
Cost:   one pick per row of the draft, all made at once after the forward; nothing more to verify
Claims: -
Differs: rejection sampling is replaced by equality, so sampled text is the text of plain decoding, token
         for token
"""

from __future__ import annotations

from dataclasses import dataclass

from lightwork.decode.proposers import ROOT, Draft
from lightwork.decode.sampling import Pick
from lightwork.decode.verifiers import PickAt, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The exact verifier; right for any tree from any proposer, greedy or sampled."""

    def verify(self, draft: Draft, pick: PickAt) -> Verdict:
        node = ROOT
        path: list[int] = []
        emitted: list[Pick] = []
        tokens: list[int] = []
        while True:
            choice = pick(node, tokens)
            emitted.append(choice)
            tokens.append(choice.token)
            child = draft.child(node, choice.token)
            if child is None:
                return Verdict(tuple(emitted), tuple(path))
            path.append(child)
            node = child
