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
    positions: list[int] = []
    index: list[int] = []
    seqs: list[int] = []
    ancestors: list[int] = []
    scored: list[int] = []
    first: list[int] = []
    for i, chunk in enumerate(step.chunks):
        base, draft = len(tokens), step.draft(i)
        num_rows = chunk.count + len(draft)
        tokens += chunk.seq.tokens[chunk.start : chunk.end]
        tokens += draft.tokens
        positions += range(chunk.start, chunk.end)
        positions += [chunk.end - 1 + depth for depth in draft.depths()]
        index += range(chunk.start, chunk.start + num_rows)
        seqs += [i] * num_rows
        ancestors += [0] * chunk.count
        ancestors += draft.ancestors()
        first.append(len(scored))
        scored += range(base + first_scored(chunk), base + num_rows)
    tables = _tables(step, kv)
    seqs_R = np.array(seqs, np.int32)
    index_R = np.array(index, np.int64)
    blocks_R = tables[seqs_R, index_R // kv.block_size].astype(np.int64)
    rows = Rows(
        tokens=np.array(tokens, np.int64),
        positions=np.array(positions, np.int64),
        slots=blocks_R * kv.block_size + index_R % kv.block_size,
        seqs=seqs_R,
        index=index_R,
        known=np.array([chunk.end for chunk in step.chunks], np.int64),
        ancestors=np.array(ancestors, np.uint64),
        tables=tables,
        scored=np.array(scored, np.int64),
    )
    return rows, first


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
