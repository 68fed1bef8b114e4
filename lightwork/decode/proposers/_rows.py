"""The rows of a draft model's pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightwork.decode.proposers import Draft
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache


def rows_of(
    kv: KVCache,
    ids: Sequence[int],
    starts: Sequence[int],
    news: Sequence[Sequence[int]],
    drafts: Sequence[Draft],
) -> Rows:
    """Of each sequence its new tokens from `starts` on, then a draft, which may be empty.

    Scored are the last new token and all of the draft.
    """
    counts = [len(new) + len(draft) for new, draft in zip(news, drafts, strict=True)]
    ends = np.cumsum(counts)
    known = np.array(starts) + [len(new) for new in news]
    seqs_R = np.arange(len(ids), dtype=np.int32).repeat(counts)
    index_R = np.arange(len(seqs_R)) + (np.array(starts) - ends + counts)[seqs_R]
    positions_R, ancestors_R = index_R.copy(), np.zeros(len(seqs_R), np.uint64)
    tokens: list[int] = []
    scored: list[int] = []
    for new, draft, end, num in zip(news, drafts, ends.tolist(), known.tolist(), strict=True):
        tokens += (*new, *draft.tokens)
        scored += range(end - len(draft) - 1, end)
        if draft.tokens:
            positions_R[end - len(draft) : end] = [num - 1 + depth for depth in draft.depths()]
            ancestors_R[end - len(draft) : end] = draft.ancestors()
    lists = [kv.table(each) for each in ids]
    tables = np.full((len(lists), max(map(len, lists))), -1, np.int32)
    for row, blocks in zip(tables, lists, strict=True):
        row[: len(blocks)] = blocks
    block_R = index_R // kv.block_size
    return Rows(
        tokens=np.array(tokens),
        positions=positions_R,
        slots=index_R + (tables[seqs_R, block_R] - block_R) * kv.block_size,
        seqs=seqs_R,
        index=index_R,
        ancestors=ancestors_R,
        known=known,
        tables=tables,
        scored=np.array(scored),
    )
