"""Experts in too small a memory: copies beside a plain count, the order of the policies, and what fetching
ahead is worth."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.claims._routes import iid_trace, texts_trace
from lightwork.errors import CapacityError, RangeError
from lightwork.memory.expert_cache import ExpertCache, Guesses, PolicyOf, hottest, names_used, replay
from lightwork.memory.predictors import Predictor
from lightwork.memory.predictors.affinity_ahead import AffinityAhead
from lightwork.memory.predictors.alike_paths import AlikePaths
from lightwork.memory.predictors.most_used import MostUsed
from lightwork.memory.predictors.pre_gate import PreGate
from lightwork.memory.residencies.activation_aware import ActivationAware
from lightwork.memory.residencies.belady import Belady
from lightwork.memory.residencies.lfu import LFU
from lightwork.memory.residencies.lru import LRU
from lightwork.memory.residencies.static_hot import StaticHot
from lightwork.models.routing import RoutingTrace

EXPERT_BYTES = 10


def cache_for(trace: RoutingTrace, slots: int, policy_of: PolicyOf) -> ExpertCache:
    return ExpertCache(
        num_layers=len(trace.layers),
        num_experts=trace.num_experts,
        experts_per_token=trace.chosen_NLK.shape[2],
        slots=slots,
        expert_bytes=EXPERT_BYTES,
        policy_of=policy_of,
    )


def policies(trace: RoutingTrace, history: RoutingTrace, slots: int) -> dict[str, PolicyOf]:
    return {
        "lru": lambda layer: LRU(),
        "lfu": lambda layer: LFU(),
        "activation": lambda layer: ActivationAware(window=100),
        "hot": lambda layer: StaticHot(hot=hottest(history, layer, slots - 2)),
        "belady": lambda layer: Belady(trace=names_used(trace, layer)),
    }


def hit_rates(trace: RoutingTrace, history: RoutingTrace, slots: int) -> dict[str, float]:
    found = policies(trace, history, slots)
    return {
        name: replay(trace.chosen_NLK.tolist(), cache_for(trace, slots, policy)).hit_rate
        for name, policy in found.items()
    }


@given(
    sets=st.lists(st.sets(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=9),
    slots=st.integers(2, 4),
)
def test_belady_copies_least_of_all_that_could_be_done(sets: list[set[int]], slots: int) -> None:
    chosen = np.array([[sorted(experts)] for experts in sets])
    trace = RoutingTrace(chosen_NLK=chosen, num_experts=5, layers=(0,))
    least: dict[frozenset[int], int] = {frozenset(): 0}
    for needed in sets:
        after: dict[frozenset[int], int] = {}
        for held, copies in least.items():
            others = held - needed
            kept = min(len(others), slots - len(needed))
            for stay in combinations(sorted(others), kept):
                now = frozenset(needed) | {*stay}
                after[now] = min(after.get(now, 99), copies + len(needed - held))
        least = after
    for name, policy_of in policies(trace, trace, slots).items():
        copies = replay(trace.chosen_NLK.tolist(), cache_for(trace, slots, policy_of)).copies
        assert copies == min(least.values()) if name == "belady" else copies >= min(least.values())


@pytest.mark.parametrize("slots", [2, 3, 5, 8])
def test_bytes_are_the_misses_times_those_of_an_expert(slots: int) -> None:
    """Counted by a plain LRU over the sets that tokens take."""
    trace = texts_trace(4, 30, 3, 8)
    misses = 0
    for layer in range(3):
        order: list[int] = []
        for needed in np.sort(trace.chosen_NLK[:, layer], axis=1).tolist():
            misses += sum(e not in order for e in needed)
            order = ([e for e in order if e not in needed] + needed)[-slots:]
    cache = replay(trace.chosen_NLK.tolist(), cache_for(trace, slots, lambda layer: LRU()))
    assert (cache.late, cache.copied_bytes, cache.uses) == (misses, misses * EXPERT_BYTES, 4 * 30 * 3 * 2)
    if slots == 8:
        assert cache.copies == 3 * 8  # each is copied once


def test_without_a_pattern_all_policies_find_the_share_that_is_there() -> None:
    """But for the one that knows what comes."""
    rates = hit_rates(iid_trace(4000, 2, 16, k=2), iid_trace(1000, 2, 16, k=2, seed=1), 6)
    for name in ("lru", "lfu", "activation", "hot"):
        assert rates[name] == pytest.approx(6 / 16, rel=0.04), name
    assert rates["belady"] > 0.5


def test_the_text_at_hand_says_more_than_the_last_tokens_or_the_whole_past() -> None:
    rates = hit_rates(texts_trace(12, 100, 2, 16, seed=1), texts_trace(12, 100, 2, 16, seed=2), 8)
    assert rates["lru"] < rates["activation"] < rates["belady"]
    assert max(rates["lfu"], rates["hot"]) < rates["activation"]


def test_what_is_hot_stays_whatever_is_used() -> None:
    trace = RoutingTrace(
        chosen_NLK=np.array([[[e]] for e in (3, 0, 1, 2, 0, 1, 2, 3)]), num_experts=4, layers=(0,)
    )
    for hot, kept in ((("0.3",), 3), (("0.3", "0.0"), 3), (("0.0", "0.3"), 0)):
        cache = replay(
            trace.chosen_NLK.tolist(), cache_for(trace, 2, lambda layer, hot=hot: StaticHot(hot=hot))
        )
        assert cache.holds(0, kept)


def test_too_few_slots_for_a_token_are_refused() -> None:
    trace = iid_trace(3, 1, 8, k=4)
    with pytest.raises(CapacityError, match="3 experts of a layer are held") as caught:
        cache_for(trace, 3, lambda layer: LRU())
    assert "at least 4" in caught.value.expected
    cache = cache_for(trace, 4, lambda layer: LRU())
    with pytest.raises(CapacityError, match="5 experts of a layer are needed together"):
        cache.use(0, [0, 1, 2, 3, 4])
    with pytest.raises(RangeError, match="window is 0"):
        ActivationAware(window=0)


def chain_trace(num_tokens: int, seed: int) -> RoutingTrace:
    """What a token takes depends on what it took two layers ago, and loads are uneven."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, 9) ** -0.5
    chosen = rng.choice(8, (num_tokens, 5), p=weights / weights.sum())
    for layer in range(2, 5):
        follows = rng.random(num_tokens) < 0.8
        chosen[:, layer] = np.where(follows, (3 * chosen[:, layer - 2] + 1) % 8, chosen[:, layer])
    return RoutingTrace(chosen_NLK=chosen[..., None], num_experts=8, layers=(0, 1, 2, 3, 4))


def accuracy(predictor: Predictor[Any], history: RoutingTrace, trace: RoutingTrace, num: int) -> float:
    return Guesses.of(predictor, history, trace, num).accuracy(trace)


def test_predictors_see_what_is_planted() -> None:
    """Paths remember two layers; affinity only one; loads are better than chance."""
    history, trace = chain_trace(2000, 0), chain_trace(300, 1)
    paths, used = (accuracy(p, history, trace, 1) for p in (AlikePaths(), MostUsed()))
    assert paths > used + 0.2
    assert used > 1 / 8
    assert accuracy(MostUsed(), history, trace, 8) == 1.0
    pairs = RoutingTrace(chosen_NLK=history.chosen_NLK[:, ::2], num_experts=8, layers=(0, 1, 2))
    new = RoutingTrace(chosen_NLK=trace.chosen_NLK[:, ::2], num_experts=8, layers=(0, 1, 2))
    assert accuracy(AffinityAhead(), pairs, new, 1) > 0.75


def test_the_next_router_predicts_what_it_will_say() -> None:
    trace = chain_trace(20, 0)
    next_NLE = np.eye(8, dtype=np.float32)[trace.chosen_NLK[:, 1:, 0]]
    assert Guesses.of(PreGate(), trace, trace, 1, next_NLE).accuracy(trace) == 1.0
    with pytest.raises(RangeError, match="not told what the next router says"):
        Guesses.of(PreGate(), trace, trace, 1)
    with pytest.raises(RangeError, match="9 experts are predicted"):
        Guesses.of(MostUsed(), trace, trace, 9)
    with pytest.raises(RangeError, match="nearest is 0"):
        AlikePaths(nearest=0)


def test_what_is_expected_rightly_is_not_late_and_what_is_wrong_costs_bytes() -> None:
    trace = texts_trace(3, 40, 4, 8)
    plain = replay(trace.chosen_NLK.tolist(), cache_for(trace, 3, lambda layer: LRU()))
    right = replay(
        trace.chosen_NLK.tolist(),
        cache_for(trace, 3, lambda layer: LRU()),
        Guesses(experts_NLW=trace.chosen_NLK[:, 1:]),
    )
    assert right.late < plain.late / 3  # only the first layer's
    assert right.copied_bytes == plain.copied_bytes
    wrong = (trace.chosen_NLK[:, 1:] + 1) % 8
    costly = replay(
        trace.chosen_NLK.tolist(), cache_for(trace, 3, lambda layer: LRU()), Guesses(experts_NLW=wrong)
    )
    assert costly.copied_bytes > plain.copied_bytes
    assert costly.copied_bytes == costly.copies * EXPERT_BYTES > costly.late * EXPERT_BYTES
