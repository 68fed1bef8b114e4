"""What a step has left is offered to drafts."""

from __future__ import annotations

from lightwork.decode.proposers import Draft, Drafter
from lightwork.memory.kv import KVCache
from lightwork.serve.schedulers import Step


def offer(step: Step, proposer: Drafter, kv: KVCache, vocab_size: int, *, may_leave: bool) -> None:
    """Fill the rows that the chunks left of the budget with drafts, and reserve their blocks.

    Under memory pressure drafts are dropped first. may_leave: sequences may go on at another engine
    with their first token; they get none until then, as their KV has to be in place.
    """
    ready = [
        i
        for i, chunk in enumerate(step.chunks)
        if chunk.end == chunk.seq.known and not (may_leave and chunk.seq.first_token_s is None)
    ]
    room = step.budget - step.num_rows
    if not ready or room < len(ready):
        return
    seqs = [step.chunks[i].seq for i in ready]
    rows = [max(0, min(proposer.k, room // len(ready), seq.output_left - 1)) for seq in seqs]
    step.drafts = [Draft()] * len(step.chunks)
    for i, most, draft in zip(ready, rows, proposer.propose(seqs, rows), strict=True):
        draft.check(repr(proposer), most, vocab_size)
        copies = kv.reserve(step.chunks[i].seq.id, step.chunks[i].end + len(draft))
        if copies is not None:
            step.drafts[i] = draft
            step.copies.extend(copies)
