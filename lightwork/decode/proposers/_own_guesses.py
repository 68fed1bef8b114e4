"""A draft model's own passes with guesses in them, so that it writes its chain in fewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.decode.choose import choose
from lightwork.decode.constraints import Matcher
from lightwork.decode.proposers import ROOT, Draft, Drafter
from lightwork.decode.sampling import Floats, Pick, Sampling, pick
from lightwork.decode.verifiers import Verdict
from lightwork.decode.verifiers.match import Match


@dataclass(slots=True)
class Written:
    """A text and what a draft model wrote behind it, as one text; see `Text`."""

    id: int
    tokens: list[int]
    prompt_len: int
    sampling: Sampling
    matcher: Matcher | None = None


class OwnGuesses:
    """What is guessed of a draft model's tokens, and what of that it would write.

    drafter: who guesses. max_len: tokens of a text that the model takes.
    """

    def __init__(self, drafter: Drafter, max_len: int) -> None:
        self._drafter = drafter
        self._max_len = max_len

    def draft(self, texts: Sequence[Written]) -> list[Draft]:
        """Guesses for the next pass over these texts."""
        rows = [max(0, min(self._drafter.k, self._max_len - len(text.tokens))) for text in texts]
        return self._drafter.propose(texts, rows)

    def verify(self, text: Written, draft: Draft, logits_NV: Floats) -> Verdict:
        """What the model writes next. logits_NV: behind the text, and behind each node of its draft.

        Raises InvariantError for logits that choose no token.
        """
        positions = [len(text.tokens) + depth for depth in (0, *draft.depths())]
        tokens = choose(logits_NV, [text.sampling] * len(positions), positions)

        def pick_at(node: int, emitted: Sequence[int], top: int | None = None) -> Pick:
            i = node + 1
            if tokens[i] >= 0:
                return Pick(tokens[i])
            prompt, output = text.tokens[: text.prompt_len], [*text.tokens[text.prompt_len :], *emitted]
            return pick(logits_NV[i], text.sampling, positions[i], prompt, output)

        verdict = Match().verify(draft, pick_at)
        if probes := draft.probes(verdict.path[-1] if verdict.path else ROOT):
            verdict = verdict._replace(probes=logits_NV[[node + 1 for node in probes]])
        self._drafter.accept([text], [verdict])
        return verdict

    def forget(self, seq_id: int) -> None:
        self._drafter.forget(seq_id)

    def close(self) -> None:
        self._drafter.close()
