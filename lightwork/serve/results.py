"""What a step's scores make of its sequences: verified tokens, texts up to their ends, KV that counts."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial

from lightwork.decode.proposers import ROOT
from lightwork.decode.sampling import Pick
from lightwork.decode.verifiers import Verdict, Verifier
from lightwork.memory.kv import Copy, KVCache
from lightwork.serve.drafting import Drafting
from lightwork.serve.runner import Scores
from lightwork.serve.schedulers import NO_DRAFT, Chunk, Step
from lightwork.serve.sequence import FinishReason
from lightwork.serve.sequence import Sequence as Seq


class Results:
    """now: the time. began: told of a sequence that has its first token and goes on. ended: told which has
    ended, and why.

    copies: rows of accepted drafts that are still to be moved, before anything is written.
    """

    def __init__(
        self,
        kv: KVCache,
        drafting: Drafting | None,
        verifier: Verifier,
        now: Callable[[], float],
        began: Callable[[Seq], object],
        ended: Callable[[Seq, FinishReason], object],
    ) -> None:
        self._kv = kv
        self._drafting = drafting
        self._verifier = verifier
        self._now = now
        self._began = began
        self._ended = ended
        self.copies: list[Copy] = []

    def take_in(self, step: Step, i: int, scores: Scores, *, stands: bool) -> int:
        """The result of one chunk; returns the number of tokens emitted.

        stands: its KV is there still; the token that it chose is right in any case. Raises whatever a
        verifier or the sequence's sink raises.
        """
        chunk = step.chunks[i]
        seq = chunk.seq
        if seq.request.prompt_logprobs is not None and seq.sink is not None and chunk.start < seq.prompt_len:
            self._tell_prompt(seq, chunk, scores.prompt(i, seq.request.prompt_logprobs))
        end, known = chunk.start + chunk.count, len(seq.tokens)
        if stands:
            self._kv.commit(seq.id, seq.tokens, end)
        if end < known:  # there is more to compute, or it was computed twice and this token is there
            return 0
        draft = step.drafts[i] if step.drafts else NO_DRAFT
        if not draft.tokens:
            self._append(seq, (scores.pick(i, ROOT, ()),))
            return len(seq.tokens) - known
        verdict = self._verifier.verify(draft, partial(scores.pick, i))
        if probes := draft.probes(verdict.path[-1] if verdict.path else ROOT):
            verdict = verdict._replace(probes=scores.probes(i, probes))
        if self._drafting is not None:
            self._drafting.accept(seq, draft, verdict)
        self._append(seq, verdict.emitted)
        if seq.finished is None:
            self._keep_accepted(seq, end, verdict)
        return len(seq.tokens) - known

    def _tell_prompt(self, seq: Seq, chunk: Chunk, picks: Sequence[Pick]) -> None:
        """Report what was not reported before the sequence was preempted or lost its engine."""
        assert seq.sink is not None
        new = picks[max(0, seq.prompt_told - chunk.start) :]
        seq.prompt_told = max(seq.prompt_told, chunk.start + len(picks))
        seq.sink.prompt(seq, new)

    def _append(self, seq: Seq, emitted: Sequence[Pick]) -> None:
        """Add chosen tokens to the text, up to the one that ends it."""
        request = seq.request
        picks: Sequence[Pick] = emitted
        reason: FinishReason | None = None
        left = request.max_tokens - len(seq.tokens) + seq.prompt_len
        if len(picks) >= left or request.stop_ids:
            picks, reason = _until_end(picks, left, request.stop_ids)
        if seq.matcher is not None:
            tokens = [pick.token for pick in picks]
            whole = seq.matcher.end(seq.tokens[seq.prompt_len :], tokens)
            if whole is not None:
                picks, reason = picks[:whole], "stop"
        for pick in picks:
            seq.tokens.append(pick.token)
        if seq.ahead:
            seq.ahead -= 1
        first = seq.first_token_s is None
        if first:
            seq.first_token_s = self._now()
        stands = seq.sink.tokens(seq, picks) if seq.sink is not None else None
        if stands is not None:
            del seq.tokens[len(seq.tokens) - len(picks) + stands :]
            reason = "stop"
        if reason is not None:
            self._ended(seq, reason)
        elif first:
            self._began(seq)

    def _keep_accepted(self, seq: Seq, known: int, verdict: Verdict) -> None:
        """The KV of accepted draft rows becomes the sequence's own; the rest is rolled back."""
        self.copies.extend(self._kv.keep(seq.id, known, verdict.path))
        seq.computed += len(verdict.path)
        self._kv.commit(seq.id, seq.tokens, seq.computed)
        self._kv.trim(seq.id)


def _until_end(
    picks: Sequence[Pick], left: int, stop_ids: Container[int]
) -> tuple[Sequence[Pick], FinishReason | None]:
    """The picks up to the one that ends the sequence, and why it ends. left: tokens until max_tokens."""
    for i, pick in enumerate(picks[:left], 1):
        if pick.token in stop_ids:
            return picks[:i], "stop"
    return (picks[:left], "length") if len(picks) >= left else (picks, None)
