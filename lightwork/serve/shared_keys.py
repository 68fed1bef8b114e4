"""Which keys attention reads for several sequences of a step together, where a device's kernels do that."""

from __future__ import annotations

from lightwork.kernels.cpu.state import CHUNK
from lightwork.memory.kv import KVCache
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers._shared_prefixes import shared_prefixes


def shared_keys(step: Step, kv: KVCache) -> list[int]:
    """Of each chunk, how many of its first keys are read for another one anyway.

    As the compiled step plans it (kernels/cpu/attention_plan.py): keys that all rows see, as many as
    attention goes over at once or a multiple of that, and each sequence in one group.
    """
    shared = [0] * len(step.chunks)
    blocks = max(1, CHUNK // kv.block_size)
    tables = []
    for seq, start, _ in step.chunks:
        whole = start // (blocks * kv.block_size) * blocks
        tables.append([*kv.table(seq.id)[:whole], 0])  # the last one is left out
    for length, members in shared_prefixes(tables, blocks):
        for i in members[1:]:
            shared[i] = length * kv.block_size
    return shared
