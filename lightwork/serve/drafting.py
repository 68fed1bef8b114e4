"""What a step has left is offered to drafts, and what became of them is counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from lightwork.decode.acceptance import Acceptance
from lightwork.decode.constraints import Matcher
from lightwork.decode.proposers import MAX_NODES, ROOT, Draft, Drafter
from lightwork.decode.verifiers import Verdict
from lightwork.errors import ConstraintError, InvariantError
from lightwork.memory.kv import KVCache
from lightwork.serve.budget import Budget
from lightwork.serve.forming import Forming
from lightwork.serve.schedulers import Step
from lightwork.serve.sequence import Sequence as Seq

log = logging.getLogger(__name__)
NOTHING_SEEN = Acceptance()


class Drafting:
    """The proposer of one engine. One that fails or breaks its contract is told of once, and not asked again.

    predict: see `View`. forming: what drafts take; where it is None or nothing is predicted, they cost their
    rows alone. num_probes: that the model has embeddings of. broken: what it did, None if nothing.
    """

    def __init__(
        self,
        proposer: Drafter,
        kv: KVCache,
        vocab_size: int,
        predict: Callable[[Step], float] | None = None,
        num_probes: int = 0,
        forming: Forming | None = None,
    ) -> None:
        self.proposer = proposer
        self.broken: Exception | None = None
        self._kv = kv
        self._vocab_size = vocab_size
        self._num_probes = num_probes
        self._opened: set[int] = set()
        self._hoped: dict[int, float] = {}
        self._sound: object = None  # gains that were checked last: most are the same values again
        self._budget = Budget(predict, forming if predict is not None else None)

    def offer(self, step: Step, *, may_leave: bool) -> None:
        """Fill the rows that the chunks left of the budget with drafts, and reserve their blocks.

        Under memory pressure drafts are dropped first. may_leave: sequences may go on at another engine
        with their first token; they get none until then, as their KV has to be in place.
        """
        room = step.budget - step.num_rows
        if self.broken is not None or room <= 0 or self._budget.rests(step):
            return
        try:
            gains = [
                self._gain(seq) if end == seq.known and not (may_leave and seq.first_token_s is None) else ()
                for seq, end in ((chunk.seq, chunk.end) for chunk in step.chunks)
            ]
            if not any(gains):
                return
            openings_s = self._openings_s(step)
            offered = self._budget.offer(step, gains, room, self._answers(step), openings_s)
            chosen = [i for i, num in enumerate(offered.rows) if num]
            if not chosen:
                return
            drafts = self._propose([step.chunks[i].seq for i in chosen], [offered.rows[i] for i in chosen])
        except Exception as error:  # whatever it raises: drafts are never needed
            self._give_up(error)
            return
        step.before_s, step.beside_s = self._budget.formed(offered, sum(openings_s[i] for i in chosen))
        self._budget.spent(offered, answered=any(drafts))
        step.drafts = [Draft()] * len(step.chunks)
        for i, proposed in zip(chosen, drafts, strict=True):
            seq = step.chunks[i].seq
            draft = proposed if seq.matcher is None else _allowed(proposed, seq, seq.matcher)
            self._opened.add(seq.id)
            seq.acceptance = seq.acceptance or Acceptance()
            for seen in (seq.acceptance, self._budget.overall):
                seen.ask(answered=bool(draft))
            copies = self._kv.reserve(seq.id, step.chunks[i].end + len(draft))
            if copies is not None:
                step.drafts[i] = draft
                self._hoped[seq.id] = sum(gains[i][: len(draft)])
                step.copies.extend(copies)
        if not any(step.drafts):
            step.drafts = []

    def accept(self, seq: Seq, draft: Draft, verdict: Verdict) -> None:
        """A draft was verified."""
        if guesses := draft.num_guesses():
            seq.drafted += guesses
            seq.accepted += len(verdict.path)
            seq.acceptance = seq.acceptance or Acceptance()
            for seen in (seq.acceptance, self._budget.overall):
                seen.observe(draft.depth(), len(verdict.path))
        self._budget.came(self._hoped.pop(seq.id, 0.0), len(verdict.path))
        if self.broken is not None:
            return
        try:
            self.proposer.accept([seq], [verdict])
        except Exception as error:
            self._give_up(error)

    def forget(self, seq: Seq) -> None:
        """A sequence gave up its keys and values."""
        self._opened.discard(seq.id)
        self._hoped.pop(seq.id, None)
        if seq.finished is not None:
            self._budget.ended(seq.num_output)
        if self.broken is not None:
            return
        try:
            self.proposer.forget(seq.id)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """End what the proposer started."""
        self.proposer.close()

    def _openings_s(self, step: Step) -> list[float]:
        """What the first draft of each sequence takes besides."""
        ids = [chunk.seq.id for chunk in step.chunks]
        if self._opened.issuperset(ids):
            return [0.0] * len(ids)
        return [
            0.0 if chunk.seq.id in self._opened else self._budget.opening_s(chunk.end)
            for chunk in step.chunks
        ]

    def _answers(self, step: Step) -> list[float]:
        """How often there is a draft for each sequence; in doubt as for all of them."""
        overall = self._budget.overall.answers(1.0)
        seen = [chunk.seq.acceptance for chunk in step.chunks]
        return [overall if one is None else one.answers(overall) for one in seen]

    def _gain(self, seq: Seq) -> Sequence[float]:
        """What rows would add, for as many as the sequence may use. Raises InvariantError."""
        most = min(self.proposer.k, MAX_NODES, seq.output_left - 1)
        if most <= 0:
            return ()
        gain = self.proposer.gain(seq, self._budget.rate(seq.acceptance or NOTHING_SEEN))
        if gain is not self._sound:
            if not all(1.0 >= a >= b >= 0.0 for a, b in zip([1.0, *gain], gain, strict=False)):
                raise self._wrong(f"expects {[*gain]} tokens of its rows", "from 0 to 1 each, never rising")
            self._sound = gain
        return gain[:most]

    def _propose(self, seqs: Sequence[Seq], rows: Sequence[int]) -> Sequence[Draft]:
        drafts = self.proposer.propose(seqs, rows)
        if len(drafts) != len(seqs) or not all(isinstance(draft, Draft) for draft in drafts):
            raise self._wrong(f"proposed {drafts!r}", f"{len(seqs)} drafts")
        for draft, most in zip(drafts, rows, strict=True):
            draft.check(repr(self.proposer), most, self._vocab_size, self._num_probes)
        return drafts

    def _wrong(self, what: str, expected: str) -> InvariantError:
        return InvariantError(
            f"{self.proposer!r} {what}", expected=expected, fix=f"serve without {self.proposer!r}"
        )

    def _give_up(self, error: Exception) -> None:
        self.broken = error
        log.warning("%r guesses no more, and serving goes on without drafts: %s", self.proposer, error)


def _allowed(draft: Draft, seq: Seq, matcher: Matcher) -> Draft:
    """Without guesses that the constraint refuses: the target cannot choose them. None where it cannot be
    followed any more, of which the scores will tell."""
    output = seq.tokens[seq.prompt_len :]
    paths: dict[int, list[int]] = {ROOT: []}
    refused = set()
    for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        if token < 0 or parent not in paths:
            continue
        path = [*paths[parent], token]
        try:
            num = matcher.num_accepted(output, path)
        except ConstraintError:
            return Draft()
        if num == len(path):
            paths[node] = path
        else:
            refused.add(node)
    return draft.without(refused) if refused else draft
