"""LRU-K beside its definition, word by word, and beside LRU where a scan comes by."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from lightwork.errors import RangeError
from lightwork.memory.residencies.lru_k import LRUK


def kept_by_definition(trace: list[int], room: int, k: int) -> list[bool]:
    """Whether each use found its item: who goes is looked up in all uses so far."""
    here: set[int] = set()
    hits = []
    for now, item in enumerate(trace):
        hits.append(item in here)
        if item not in here and len(here) == room:
            uses = {one: [t for t in range(now) if trace[t] == one] for one in here}
            here.remove(
                min(here, key=lambda one: (uses[one][-k] if len(uses[one]) >= k else -1, uses[one][-1]))
            )
        here.add(item)
    return hits


def kept(trace: list[int], room: int, policy: LRUK) -> list[bool]:
    state, here, hits = policy.init(()), set(), []
    for item in map(str, trace):
        hits.append(item in here)
        if item not in here and len(here) == room:
            here.remove(policy.victim(state, here))
        here.add(item)
        policy.use(state, item)
    return hits


@pytest.mark.parametrize("k", [1, 2, 3])
def test_who_goes_is_who_the_definition_names(k: int) -> None:
    trace = np.random.default_rng(k).zipf(1.3, 1500) % 40
    assert kept(trace.tolist(), 12, LRUK(k=k)) == kept_by_definition(trace.tolist(), 12, k)


def test_with_one_use_it_is_lru() -> None:
    trace = (np.random.default_rng(0).zipf(1.2, 4000) % 60).tolist()
    here: OrderedDict[int, None] = OrderedDict()
    hits = []
    for item in trace:
        hits.append(item in here)
        here.pop(item, None)
        here[item] = None
        if len(here) > 20:
            here.popitem(last=False)
    assert kept(trace, 20, LRUK(k=1)) == hits


def test_looking_back_at_no_use_is_refused() -> None:
    with pytest.raises(RangeError, match="k=0"):
        LRUK(k=0)
