"""Whether a step's rows name only what there is: asked before anything is computed."""

from __future__ import annotations

from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.formats import PAGE
from lightwork.kernels.cpu.primitives import int32s, int_at, record_at


@compiled
def all_there(record: int) -> int:
    """1 if every row's token, position, slot and blocks up to its own exist, else 0.

    record: its address, of a State whose batch is filled.
    """
    t = record_at(record)
    for r in range(t.rows):
        token, position, slot = int_at(t.tokens, r), int_at(t.row_positions, r), int_at(t.slots, r)
        if token < -t.num_probes or token >= t.vocab or position < 0 or position >= t.max_len:
            return 0
        index, table = (
            int_at(t.index, r),
            int32s(t.tables + 4 * int_at(t.seqs, r) * t.table_width, t.table_width),
        )
        if slot < 0 or slot >= t.blocks * PAGE or index < 0 or index // PAGE >= t.table_width:
            return 0
        for i in range(index // PAGE + 1):
            if table[i] < 0 or table[i] >= t.blocks:
                return 0
    return 1
