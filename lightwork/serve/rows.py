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
    log-probabilities are wanted is scored at every row.
    """
    tokens: list[int] = []
    scored: list[int] = []
    first: list[int] = []
    starts, ends, counts = [], [], []
    for i, chunk in enumerate(step.chunks):
        base, draft = len(tokens), step.draft(i)
        tokens += chunk.seq.tokens[chunk.start : chunk.end]
        tokens += draft.tokens
        starts.append(chunk.start)
        ends.append(chunk.end)
        counts.append(len(tokens) - base)
        first.append(len(scored))
        scored += range(base + first_scored(chunk), len(tokens))
    counts_S, known_S = np.array(counts, np.int64), np.array(ends, np.int64)
    begin_S = counts_S.cumsum() - counts_S
    seqs_R = np.repeat(np.arange(len(counts), dtype=np.int32), counts_S)
    index_R = np.arange(len(tokens)) + (np.array(starts, np.int64) - begin_S)[seqs_R]
    tables = _tables(step, kv)
    block_R, offset_R = np.divmod(index_R, kv.block_size)
    positions_R, ancestors_R = index_R, np.zeros(len(tokens), np.uint64)
    if step.drafts:
        positions_R = index_R.copy()
        _place_drafts(step, begin_S, positions_R, ancestors_R)
    rows = Rows(
        tokens=np.array(tokens, np.int64),
        positions=positions_R,
        slots=tables[seqs_R, block_R].astype(np.int64) * kv.block_size + offset_R,
        seqs=seqs_R,
        index=index_R,
        known=known_S,
        ancestors=ancestors_R,
        tables=tables,
        scored=np.array(scored, np.int64),
    )
    return rows, first


def _place_drafts(
    step: Step, begin_S: NDArray[np.int64], positions_R: NDArray[np.int64], ancestors_R: NDArray[np.uint64]
) -> None:
    """Positions of draft rows follow their depth, and they see their ancestors."""
    for chunk, draft, begin in zip(step.chunks, step.drafts, begin_S.tolist(), strict=True):
        at = slice(begin + chunk.count, begin + chunk.count + len(draft))
        positions_R[at] = [chunk.end - 1 + depth for depth in draft.depths()]
        ancestors_R[at] = draft.ancestors()


def first_scored(chunk: Chunk) -> int:
    """The chunk's first row whose scores are wanted; chunk.count if none is."""
    if chunk.seq.request.prompt_logprobs is not None and chunk.start < chunk.seq.prompt_len:
        return 0
    return chunk.count - 1 if chunk.end == chunk.seq.known else chunk.count


def _tables(step: Step, kv: KVCache) -> NDArray[np.int32]:
    lists = [kv.table(chunk.seq.id) for chunk in step.chunks]
    tables = np.full((len(lists), max(map(len, lists))), -1, np.int32)
    for i, blocks in enumerate(lists):
        tables[i, : len(blocks)] = blocks
    return tables
