"""The plain model of LRU that residencies are held against."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


def lru_misses(trace: Sequence[str], slots: int) -> int:
    held: OrderedDict[str, None] = OrderedDict()
    misses = 0
    for name in trace:
        misses += name not in held
        held.pop(name, None)
        held[name] = None
        if len(held) > slots:
            held.popitem(last=False)
    return misses
