"""From a step to rows: the one ragged batch that a model's forward takes.

R rows, S sequences (one per chunk), N scored rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.serve.schedulers import Chunk, Step


def build_rows(step: Step, kv: KVCache) -> tuple[Rows, list[int]]:
    """Rows of the step's chunks and drafts, and for each chunk the index of its first scored row among the N.

    A chunk that reaches the last known token is scored there and at its draft nodes; one whose prompt's
    log-probabilities are wanted is scored at every row. Where a token is still being chosen stands 0, see
    `fed_rows`.
    """
    tokens: list[int] = []
    scored: list[int] = []
    first: list[int] = []
    begins: list[int] = []
    counts: list[int] = []
    starts: list[int] = []
    known: list[int] = []
    fed = {i for i, _ in step.fed}
    for i, (chunk, length) in enumerate(zip(step.chunks, step.lengths(), strict=True)):
        begin, start, end = len(tokens), chunk.start, chunk.start + chunk.count
        tokens += (0,) if i in fed else chunk.seq.tokens[start:end]
        if step.drafts:
            tokens += step.drafts[i].tokens
        first.append(len(scored))
        scored += range(begin + first_scored(chunk, length), len(tokens))
        begins.append(begin)
        counts.append(len(tokens) - begin)
        starts.append(start)
        known.append(end)
    seqs_R = np.arange(len(begins), dtype=np.int32).repeat(counts)
    index_R = np.arange(len(tokens)) + (np.array(starts) - np.array(begins))[seqs_R]
    models = [chunk.seq.request.model for chunk in step.chunks]
    encoded = [chunk.seq.request.encoded for chunk in step.chunks]
    tables = _tables(step, kv)
    block_R = index_R // kv.block_size
    positions_R, ancestors_R = index_R, np.zeros(len(tokens), np.uint64)
    if step.drafts:
        positions_R = index_R.copy()
        _place_drafts(step, begins, positions_R, ancestors_R)
    rows = Rows(
        tokens=np.array(tokens),
        positions=positions_R,
        slots=index_R + (tables[seqs_R, block_R] - block_R) * kv.block_size,
        seqs=seqs_R,
        index=index_R,
        known=np.array(known),
        ancestors=ancestors_R,
        tables=tables,
        scored=np.array(scored, np.int64),
        models=models if any(models) else (),
        encoded=encoded if any(encoded) else (),
    )
    return rows, first


def _place_drafts(
    step: Step, begins: list[int], positions_R: NDArray[np.int64], ancestors_R: NDArray[np.uint64]
) -> None:
    """Positions of draft rows follow their depth, and they see their ancestors."""
    for chunk, draft, begin in zip(step.chunks, step.drafts, begins, strict=True):
        at = slice(begin + chunk.count, begin + chunk.count + len(draft))
        positions_R[at] = [chunk.end - 1 + depth for depth in draft.depths()]
        ancestors_R[at] = draft.ancestors()


def fed_rows(rows: Rows, step: Step) -> NDArray[np.int64]:
    """Rows of the tokens that the step before is choosing: each alone of its chunk."""
    return np.searchsorted(rows.seqs, [i for i, _ in step.fed])


def first_scored(chunk: Chunk, known: int) -> int:
    """The chunk's first row whose scores are wanted; chunk.count if none is."""
    if chunk.seq.request.prompt_logprobs is not None and chunk.start < chunk.seq.prompt_len:
        return 0
    return chunk.count - (chunk.start + chunk.count == known)


def _tables(step: Step, kv: KVCache) -> NDArray[np.int32]:
    lists = [kv.table(chunk.seq.id) for chunk in step.chunks]
    width = max(map(len, lists))
    tables = np.full((len(lists), width), -1, np.intc)
    flat = tables.reshape(-1).data  # memory to memory: a third of the time of assigning through numpy
    for i, blocks in enumerate(lists):
        flat[i * width : i * width + len(blocks)] = blocks
    return tables
