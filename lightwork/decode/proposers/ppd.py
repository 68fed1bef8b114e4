"""PPD: trained prompt tokens, in the target's own pass, guess several of its next tokens.

Paper:  "Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference", 2024
Idea:   behind a token stand prompt tokens that nobody else sees, the i-th of which says what may follow i
        tokens after the next one; a tree of these guesses, and of prompts under each, is the next draft
Shapes: m prompts of v embeddings of d numbers each, v = 1 the fastest; trees of n rows, one for each number
        0..m of levels of guesses there are
Cost:   n rows a step in the target's pass, and the best R of m rows of logits; no model, 4 m v d bytes
Claims: ppd
Differs: exact verification, where the publication accepts what is typical; trees are valued by all steps to
         come (decode/tree.py); sampled text is guessed with the target's own noise of (seed, position)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lightwork.decode.proposers import MAX_NODES, Draft, Effort, Target, Text
from lightwork.decode.sampling import Floats, gumbel
from lightwork.decode.tree import Trees, all_trees, concave
from lightwork.decode.verifiers import Verdict
from lightwork.errors import RangeError, SpecError
from lightwork.models import read_shape, resolve
from lightwork.models.prompt_tokens import FILE, read_prompt_tokens

KEEP, DOUBT = 0.97, 2.0
"""What a step leaves of the weight of those before it, and tokens that a tree's solution counts for: trees of
one text have good and bad runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PPD:
    """prompts: a file that `write_prompt_tokens` wrote; "" takes the one beside the model's weights.

    k: the most rows of a sequence in a step, guesses and prompts together.
    """

    prompts: str = ""
    k: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_NODES:
            raise RangeError(
                f"PPD cannot use k={self.k} rows", expected=f"1 <= k <= {MAX_NODES}", fix="PPD(k=32)"
            )

    def begin(self, target: Target) -> PromptDrafter:
        """Raises SpecError where no probes are computed, CheckpointError if the file is not the model's."""
        if target.put_probes is None:
            raise SpecError(
                f"{self!r} needs rows that are no tokens, which {target.model} on {target.on} does not have",
                expected="a model that takes their embeddings (Target.put_probes)",
                fix="serve without PPD",
            )
        file = Path(self.prompts) if self.prompts else resolve(target.model) / FILE
        prompts = read_prompt_tokens(file, read_shape(target.model))
        target.put_probes(prompts.embeddings_Pd)
        return PromptDrafter(self, prompts.accuracy_mR, most_likely, prompts.virtual)


@dataclass(slots=True)
class Kept:
    """Of one text. lists: of each level, tokens from the most likely on, to follow its first `known` tokens.

    hits, hoped: guesses that were accepted lately, and that were expected to be. expected: of the draft that
    is being verified.
    """

    known: int = 0
    lists: list[list[int]] = field(default_factory=list)
    hits: float = 0.0
    hoped: float = 0.0
    expected: float = 0.0

    def held(self) -> float:
        """What trees are worth in this text, over what they were solved for, 0 to 1."""
        return min(1.0, (self.hits + DOUBT) / (self.hoped + DOUBT))


class Guess(Protocol):
    """Reads what prompts say."""

    def __call__(self, text: Text, scores_cV: Floats, position: int, ranks: int) -> list[list[int]]:
        """The tokens that a text may have from a position on, so many at each, the most likely first.

        scores_cV: logits of the prompts.
        """
        ...


class PromptDrafter:
    """Keeps, of each text, what the prompts under its last accepted token said. virtual: tokens of each."""

    def __init__(self, how: PPD, accuracy_mR: NDArray[np.float64], guess: Guess, virtual: int = 1) -> None:
        self._how = how
        self._guess = guess
        self._virtual = virtual
        self._ranks = accuracy_mR.shape[1]
        self._trees: list[Trees] = all_trees(accuracy_mR, how.k, virtual)
        self._gain = concave([trees.tokens_per_step for trees in self._trees])
        self._kept: dict[int, Kept] = {}

    def __repr__(self) -> str:
        return repr(self._how)

    @property
    def k(self) -> int:
        return self._how.k

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        """As the trees were solved, where prompts pay in the steps after; less if guesses hold less often."""
        kept = self._kept.get(text.id)
        held = 1.0 if kept is None else kept.held()
        return self._gain if held == 1.0 else [held * gain for gain in self._gain]

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        drafts = []
        for text, most in zip(texts, rows, strict=True):
            kept = self._kept.setdefault(text.id, Kept())
            lists = kept.lists if kept.known == len(text.tokens) else []
            trees = self._trees[min(most, self.k)]
            kept.expected = float(trees.accepted_S[len(lists)])
            drafts.append(trees.by_state[len(lists)].draft(lists))
        return drafts

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        for text, verdict in zip(texts, verdicts, strict=True):
            kept, probes = self._kept[text.id], verdict.probes
            if probes is not None and self._virtual > 1:  # of a prompt, on average
                probes = probes.reshape(-1, self._virtual, probes.shape[1]).mean(1)
            kept.hits = KEEP * kept.hits + len(verdict.path)
            kept.hoped = KEEP * kept.hoped + kept.expected
            kept.known = len(text.tokens) + len(verdict.emitted)
            kept.lists = [] if probes is None else self._guess(text, probes, kept.known, self._ranks)

    def forget(self, seq_id: int) -> None:
        self._kept.pop(seq_id, None)

    def close(self) -> None:
        """Nothing runs."""


def most_likely(text: Text, scores_cV: Floats, position: int, ranks: int) -> list[list[int]]:
    """See `Guess`: by the scores, for sampled text with the noise that the target's choice will have."""
    how, lists = text.sampling, []
    for at, scores_V in enumerate(scores_cV, position):
        if how.temperature > 0.0:
            scores_V = scores_V / how.temperature + gumbel(how.seed, at, np.arange(len(scores_V)))
        best = np.argpartition(-scores_V, ranks - 1)[:ranks]
        lists.append([int(token) for token in best[np.argsort(-scores_V[best], kind="stable")]])
    return lists
