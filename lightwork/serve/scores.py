"""What a forward pass says: the choices made from its logits.

N scored rows, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightwork.decode.choose import choose
from lightwork.decode.sampling import Floats, Pick, Sampling, describe, pick
from lightwork.serve.schedulers import Step


class LogitScores:
    """Choices made from logits_NV, float32. first: per chunk, the index of its first scored row.

    All are made here, on the thread that ran the forward; after a draft node, the choice that holds if the
    path to it is accepted. What `choose` leaves open is chosen when it is asked for.
    """

    __slots__ = ("_chosen", "_first", "_logits_NV", "_root", "_step")

    def __init__(self, step: Step, logits_NV: Floats, first: list[int]) -> None:
        self._step = step
        self._logits_NV = logits_NV
        self._first = first
        self._root: list[int] = []
        rows: list[int] = []
        hows: list[Sampling] = []
        positions: list[int] = []
        for i, (chunk, end) in enumerate(zip(step.chunks, [*first[1:], len(logits_NV)], strict=True)):
            depths = (0, *step.drafts[i].depths()) if step.drafts else (0,)
            root, known = end - len(depths), len(chunk.seq.tokens)
            self._root.append(root)
            if chunk.start + chunk.count == known:
                for row, depth in enumerate(depths, root):
                    rows.append(row)
                    hows.append(chunk.seq.sampling)
                    positions.append(known + depth)
        asked_MV = logits_NV if len(rows) == len(logits_NV) else logits_NV[rows]
        tokens = choose(asked_MV, hows, positions)
        self._chosen = dict(zip(zip(rows, positions, strict=True), tokens, strict=True))

    def pick(self, chunk: int, node: int, emitted: Sequence[int]) -> Pick:
        seq = self._step.chunks[chunk].seq
        how = seq.sampling
        row, position = self._root[chunk] + 1 + node, seq.known + len(emitted)
        token = self._chosen.get((row, position), -1)
        if token < 0:
            output = (*seq.tokens[seq.prompt_len :], *emitted) if how.penalised else ()
            prompt = seq.tokens[: seq.prompt_len] if how.penalised else ()
            return pick(self._logits_NV[row], how, position, prompt, output)
        return Pick(token) if how.logprobs is None else describe(self._logits_NV[row], token, how.logprobs)

    def prompt(self, chunk: int, num_top: int) -> list[Pick]:
        part = self._step.chunks[chunk]
        seq = part.seq
        successors = seq.tokens[part.start + 1 : min(part.end, seq.prompt_len - 1) + 1]
        first = self._first[chunk]
        return [
            describe(np.asarray(self._logits_NV[first + i]), t, num_top) for i, t in enumerate(successors)
        ]
