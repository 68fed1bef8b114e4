"""What a forward pass says: the choices made from its logits.

N scored rows, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lightwork.decode.choose import choose
from lightwork.decode.proposers import ROOT
from lightwork.decode.sampling import Floats, Pick, Sampling, describe, pick
from lightwork.errors import InvariantError
from lightwork.serve.schedulers import NO_DRAFT, Chunk, Step


class LogitScores:
    """Choices made from logits_NV, float32. first: per chunk, the index of its first scored row. fed: last
    tokens, of chunks which did not know theirs when they were planned.

    All are made here, on the thread that ran the forward; after a draft node, the choice that holds if the
    path to it is accepted. What `choose` leaves open is chosen when it is asked for. What a constraint does
    not allow is taken out of the logits before.
    """

    __slots__ = ("_chosen", "_fed", "_first", "_known", "_logits_NV", "_picked", "_root", "_step", "_wrong")

    def __init__(
        self, step: Step, logits_NV: Floats, first: list[int], fed: Mapping[int, int] | None = None
    ) -> None:
        self._step = step
        self._known = step.lengths()
        self._fed = fed or {}
        self._picked: dict[int, Pick] = {}
        self._logits_NV = logits_NV
        self._first = first
        self._root: list[int] = []
        self._wrong: dict[int, Exception] = {}
        rows: list[int] = []
        hows: list[Sampling] = []
        positions: list[int] = []
        for i, (chunk, end) in enumerate(zip(step.chunks, [*first[1:], len(logits_NV)], strict=True)):
            draft = step.drafts[i] if step.drafts else NO_DRAFT
            guesses = draft.depths() if draft.tokens else ()
            known, root = self._known[i], end - 1 - len(guesses)
            self._root.append(root)
            if chunk.start + chunk.count == known:
                rows.append(root)
                hows.append(chunk.seq.sampling)
                positions.append(known)
                for node, depth in enumerate(guesses):
                    if draft.tokens[node] >= 0:
                        rows.append(root + 1 + node)
                        hows.append(chunk.seq.sampling)
                        positions.append(known + depth)
                if chunk.seq.request.constraint is not None:
                    self._restrict(i)
        logits_NV = self._logits_NV
        asked_MV = logits_NV if len(rows) == len(logits_NV) else logits_NV[rows]
        tokens = choose(asked_MV, hows, positions)
        self._chosen = dict(zip(zip(rows, positions, strict=True), tokens, strict=True))

    def _restrict(self, chunk: int) -> None:
        if not self._logits_NV.flags.writeable:
            self._logits_NV = np.array(self._logits_NV)
        logits_NV, root = self._logits_NV, self._root[chunk]
        try:
            restrict(self._step, chunk, self._fed, lambda node: logits_NV[root + 1 + node])
        except Exception as error:  # it ends this sequence, when it is asked for; not the step
            self._wrong[chunk] = error

    def pick(self, chunk: int, node: int, emitted: Sequence[int], top: int | None = None) -> Pick:
        if chunk in self._wrong:
            raise self._wrong[chunk]
        if top is not None:
            token = self.pick(chunk, node, emitted).token
            return describe(self._logits_NV[self._root[chunk] + 1 + node], token, top)
        if node == ROOT and chunk in self._picked:
            return self._picked[chunk]
        seq = self._step.chunks[chunk].seq
        how = seq.sampling
        row, position = self._root[chunk] + 1 + node, self._known[chunk] + len(emitted)
        token = self._chosen.get((row, position), -1)
        if token < 0:
            text = text_of(self._step, chunk, self._fed) if how.penalised else []
            output = (*text[seq.prompt_len :], *emitted)
            return pick(self._logits_NV[row], how, position, text[: seq.prompt_len], output)
        return Pick(token) if how.logprobs is None else describe(self._logits_NV[row], token, how.logprobs)

    def probes(self, chunk: int, nodes: Sequence[int]) -> Floats:
        return self._logits_NV[[self._root[chunk] + 1 + node for node in nodes]]

    def next_token(self, chunk: int) -> int:
        """What a chunk chose, for the step after: any token, if choosing fails, as it does when it is
        asked for again. On the thread that computes steps."""
        try:
            self._picked[chunk] = chosen = self.pick(chunk, ROOT, ())
        except Exception:
            return 0
        return chosen.token

    def keep(self) -> None:
        """Copy what of the logits may be asked for, as the array is about to be written again."""
        if -1 in self._chosen.values() or any(map(_reports, self._step.chunks)):
            self._logits_NV = np.array(self._logits_NV)

    def prompt(self, chunk: int, num_top: int) -> list[Pick]:
        part = self._step.chunks[chunk]
        seq = part.seq
        successors = seq.tokens[part.start + 1 : min(part.end, seq.prompt_len - 1) + 1]
        first = self._first[chunk]
        return [
            describe(np.asarray(self._logits_NV[first + i]), t, num_top) for i, t in enumerate(successors)
        ]


def text_of(step: Step, chunk: int, fed: Mapping[int, int]) -> list[int]:
    """The tokens before the one that a chunk chooses, whether the engine knows the last one by now or not."""
    known, seq = step.lengths()[chunk], step.chunks[chunk].seq
    return [*seq.tokens[: known - 1], fed[chunk]] if chunk in fed else seq.tokens[:known]


def restrict(step: Step, chunk: int, fed: Mapping[int, int], logits: Callable[[int], Floats]) -> None:
    """Take out of the logits after ROOT, and after each draft node that can be accepted, what the constraint
    does not allow there. logits(node): float32 [V], written.

    Raises ConstraintError, and InvariantError where nobody has compiled the constraint: no text without it.
    """
    seq = step.chunks[chunk].seq
    if seq.matcher is None:
        raise InvariantError(f"{seq} has a constraint and no matcher", expected="one made by its engine")
    output = text_of(step, chunk, fed)[seq.prompt_len :]
    paths: dict[int, list[int]] = {ROOT: output}
    allowed = {ROOT: seq.matcher.allowed(output)}
    draft = step.draft(chunk)
    for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        if token >= 0 and parent in allowed and allowed[parent][token]:
            paths[node] = [*paths[parent], token]
            allowed[node] = seq.matcher.allowed(paths[node])
    for node, allowed_V in allowed.items():
        np.putmask(logits(node), ~allowed_V, -np.inf)


def _reports(chunk: Chunk) -> bool:
    """Whether it says more than tokens."""
    return chunk.seq.sampling.logprobs is not None or chunk.seq.request.prompt_logprobs is not None
