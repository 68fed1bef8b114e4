"""Drafts from a cheaper path of the model that verifies them (Duo-LLM's all-small path).

The path is a model of its own that shares the verifier's weights but for its MLPs; it keeps its own keys and
values. A verifier such as `Match` makes any draft lossless, so this is speed without a second checkpoint.
An engine takes it as `Engine(proposer=SelfSpeculation(model, k=4))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from lightwork.decode.acceptance import chain_gain
from lightwork.decode.proposers import MAX_NODES, Draft, Text
from lightwork.decode.verifiers import Verdict
from lightwork.errors import RangeError
from lightwork.kernels.rows import Rows
from lightwork.models.model import KVPool, Model


@dataclass(slots=True)
class _Read:
    """What the path has computed of a text. tokens: those whose keys and values are in kv."""

    kv: KVPool
    tokens: list[int] = field(default_factory=list)


class SelfSpeculation:
    """A proposer of chains of up to k tokens, each the path's most probable one.

    model: the path. read: rows that it has computed. drafted, kept: tokens. rounds: drafts that were judged.
    """

    def __init__(self, model: Model, k: int = 4) -> None:
        if not 1 <= k <= MAX_NODES:
            raise RangeError(f"k={k} tokens cannot be drafted", expected=f"1 to {MAX_NODES}", fix="k=4")
        self.k = k
        self.read = self.drafted = self.kept = self.rounds = 0
        self._model = model
        self._texts: dict[int, _Read] = {}

    def gain(self, text: Text, rate: float) -> list[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        for text in texts:
            if text.id not in self._texts:
                self._texts[text.id] = _Read(self._new_kv())
        return [
            Draft.chain(self._continuation(self._texts[t.id], t.tokens, min(self.k, n)))
            for t, n in zip(texts, rows, strict=True)
        ]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Counts them; keys and values of refused tokens are written over."""
        self.rounds += len(verdicts)
        self.kept += sum(len(verdict.path) for verdict in verdicts)

    def forget(self, seq_id: int) -> None:
        self._texts.pop(seq_id, None)

    def _new_kv(self) -> KVPool:
        return self._model.new_kv(1, self._model.spec.max_len)

    def _continuation(self, text: _Read, tokens: list[int], most: int) -> list[int]:
        most = min(most, self._model.spec.max_len - len(tokens))
        if most <= 0:
            return []
        same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(text.tokens, tokens, strict=False)))
        start = min(same, len(tokens) - 1)
        drafted: list[int] = []
        ahead = tokens[start:]
        while len(drafted) < most:
            drafted.append(self._next(text.kv, ahead, start))
            start += len(ahead)
            ahead = drafted[-1:]
        self.drafted += len(drafted)
        text.tokens = tokens + drafted[:-1]
        return drafted

    def _next(self, kv: KVPool, tokens: list[int], start: int) -> int:
        """The most probable token behind these, which begin at this place of their text."""
        num = len(tokens)
        at = np.arange(start, start + num)
        rows = Rows(
            tokens=np.array(tokens, np.int64),
            positions=at,
            slots=at,
            seqs=np.zeros(num, np.int32),
            index=at,
            ancestors=np.zeros(num, np.uint64),
            known=np.array([start + num]),
            tables=np.zeros((1, 1), np.int32),
            scored=np.array([num - 1]),
        )
        self.read += num
        return int(self._model.logits(rows, kv)[0].argmax())
