"""Which keys attention reads for several sequences of a step together, where a device's kernels do that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightwork.kernels.cpu.state import CHUNK
from lightwork.memory.kv import KVCache
from lightwork.serve.schedulers import Step


def shared_keys(step: Step, kv: KVCache) -> list[int]:
    """Of each chunk, how many of its first keys are read for another one anyway.

    As the compiled step plans it (kernels/cpu/attention_plan.py): keys that all rows see, as many as
    attention goes over at once or a multiple of that. Sequences with the same first blocks are side by side,
    and cut into groups that save the most; the first of a group reads.
    """
    shared = [0] * len(step.chunks)
    size = max(1, CHUNK // kv.block_size)
    # The last block of each run of `size`: two that have the same have the same before it.
    ends = [kv.table(chunk.seq.id)[size - 1 :: size] for chunk in step.chunks]
    seen = [chunk.start // (size * kv.block_size) for chunk in step.chunks]
    order = sorted(range(len(ends)), key=ends.__getitem__)
    alike = [min(seen[i], seen[j], _common(ends[i], ends[j])) for i, j in pairwise(order)]
    if any(alike):
        for first, last in pairwise(_cuts(alike)):
            keys = min(alike[first : last - 1], default=0) * size * kv.block_size
            for i in order[first + 1 : last]:
                shared[i] = keys
    return shared


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cuts(alike: Sequence[int]) -> list[int]:
    """Where groups of neighbours begin, and the end, such that they save the most.

    alike: what one has in common with the next. A group saves the least of that for all but its first.
    """
    saved, begin = [0, 0], [0, 0]  # of the first so many: the most, and where their last group begins
    growing: list[_Growing] = []  # the more in common, the later
    for i, common in enumerate(alike):
        begins = [i]
        while growing and growing[-1].alike > common:
            begins = growing.pop().begins + begins
        if common:
            if not growing or growing[-1].alike < common:
                growing.append(_Growing(common, [], i))
            last = growing[-1]
            last.begins += begins
            last.best = max((last.best, *begins), key=lambda j: saved[j] - j * common)
        most, first = saved[i + 1], i + 1  # alone
        for some in growing:
            if (with_others := saved[some.best] + (i + 1 - some.best) * some.alike) > most:
                most, first = with_others, some.best
        saved.append(most)
        begin.append(first)
    cuts = [len(alike) + 1]
    while cuts[-1]:
        cuts.append(begin[cuts[-1]])
    return cuts[::-1]


@dataclass(slots=True)
class _Growing:
    """Groups that the next may join and that have as much in common: where they begin, and the best one."""

    alike: int
    begins: list[int]
    best: int
