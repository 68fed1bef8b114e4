"""Experts in an arena that holds a few of them: the same bits, and the copies that a replay foretells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from steps import Part, Steps

from lightwork import models
from lightwork.claims._routes import iid_trace, texts_trace
from lightwork.errors import CapacityError
from lightwork.memory.expert_cache import ExpertCache, Guesses, replay
from lightwork.memory.expert_fetching import TokenWork, decode
from lightwork.memory.offloaded_experts import OffloadedExperts
from lightwork.memory.residencies.lru import LRU
from lightwork.models.mixture import Mixture, through
from lightwork.models.model import Model
from lightwork.models.routing import Recorder, RoutingTrace
from lightwork.models.transformer import unseen
from lightwork.runtime import Compute, Effect, Fifo, Kernel, Move, Price, SimWorld, Work

LENGTH = 20


def opened(checkpoint: Callable[..., Path], **config: int) -> Model:
    folder = checkpoint("qwen3_moe", num_experts=8, num_experts_per_tok=3, mlp_only_layers=[1], **config)
    return models.load(str(folder))


def offloaded(model: Model, slots: int) -> OffloadedExperts:
    experts = OffloadedExperts(model.weights, model.spec, slots)
    mixture = Mixture(
        weights=model.weights, spec=model.spec, bring=experts.bring, routed=lambda *seen: model.routed(*seen)
    )
    model.hidden = through(model, mixture)
    return experts


def at_once(model: Model) -> np.ndarray:
    return Steps(model, num_blocks=1).run([Part(0, 0, LENGTH)])[0]


def token_by_token(model: Model) -> np.ndarray:
    steps = Steps(model, num_blocks=1)
    return np.concatenate([steps.run([Part(0, at, 1)])[0] for at in range(LENGTH)])


@pytest.mark.parametrize("slots", [3, 4, 7, 8, 9])
def test_outputs_are_the_same_bits_with_any_number_of_slots(
    checkpoint: Callable[..., Path], slots: int
) -> None:
    """Token by token, and of all rows at once, which take more experts than there are slots."""
    model = opened(checkpoint)
    plain = token_by_token(model), at_once(model)
    experts = offloaded(model, slots)
    assert np.array_equal(token_by_token(model), plain[0])
    assert np.array_equal(at_once(model), plain[1])
    assert experts.arena_bytes == 2 * min(slots, 8) * experts.cache.expert_bytes


@pytest.mark.parametrize("slots", [3, 5, 8])
def test_copies_are_those_of_a_replay(checkpoint: Callable[..., Path], slots: int) -> None:
    model = opened(checkpoint)
    experts, recorder = offloaded(model, slots), Recorder()
    model.routed = recorder
    token_by_token(model)
    model.routed = unseen
    counted = replay(
        recorder.trace().chosen_NLK.tolist(), cache_for(recorder.trace(), slots, experts.cache.expert_bytes)
    )
    assert experts.cache.copied_bytes == counted.copied_bytes > 0
    assert experts.cache.hit_rate == counted.hit_rate
    assert experts.cache.expert_bytes == 4 * 3 * 32 * 24  # gate, up and down in float32


def test_fewer_slots_than_a_token_needs_are_refused(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint)
    with pytest.raises(CapacityError, match="2 experts of a layer are held"):
        OffloadedExperts(model.weights, model.spec, 2)


def cache_for(trace: RoutingTrace, slots: int, expert_bytes: int = 1) -> ExpertCache:
    return ExpertCache(
        num_layers=len(trace.layers),
        num_experts=trace.num_experts,
        experts_per_token=trace.chosen_NLK.shape[2],
        slots=slots,
        expert_bytes=expert_bytes,
        policy_of=lambda layer: LRU(),
    )


AROUND_S, EXPERT_S = 1.0, 0.5


def seconds(trace: RoutingTrace, cache: ExpertCache, copy_s: float, guesses: Guesses | None = None) -> float:
    """Of decoding a trace. One copy runs at a time."""
    kernel = Kernel()

    def price(effect: Effect, rank: int) -> Price:
        if isinstance(effect, Move):
            return Price(((("link",), copy_s),))
        assert isinstance(effect, Compute)
        return Price(((("compute",), sum(w.ops for w in effect.work)),))

    world = SimWorld(kernel, price, {"compute": Fifo("compute"), "link": Fifo("link")})
    work = TokenWork(around=(Work(ops=AROUND_S),), expert=(Work(ops=EXPERT_S),))
    world.launch(0, decode(trace.chosen_NLK.tolist(), cache, work, guesses))
    world.run()
    return kernel.now()


def test_time_is_that_of_computing_if_copies_are_free_and_of_the_link_if_they_are_slow() -> None:
    trace = texts_trace(2, 40, 4, 8)
    computed_s = len(trace) * 4 * (AROUND_S + 2 * EXPERT_S)
    assert seconds(trace, cache_for(trace, 4), 0.0) == pytest.approx(computed_s)
    cache = cache_for(trace, 4)
    slow_s = seconds(trace, cache, 100.0)
    assert slow_s == pytest.approx(100.0 * cache.copies, rel=0.05)
    assert slow_s > 100.0 * cache.copies


def test_experts_that_are_there_compute_while_the_others_come() -> None:
    """One of two is late in each layer: its copy is hidden behind the other one."""
    chosen = np.array([[[0, 1]], [[0, 2]], [[0, 3]], [[0, 4]]])
    trace = RoutingTrace(chosen_NLK=chosen, num_experts=5, layers=(0,))
    assert seconds(trace, cache_for(trace, 2), EXPERT_S) == pytest.approx(
        4 * (AROUND_S + 2 * EXPERT_S) + EXPERT_S  # the first copy of the first token hides behind nothing
    )


def test_right_guesses_hide_copies_and_wrong_ones_cost_time() -> None:
    trace = iid_trace(60, 6, 16, k=2)
    right, wrong = trace.chosen_NLK[:, 1:], (trace.chosen_NLK[:, 1:] + 1) % 16
    copy_s = 0.6
    plain_s = seconds(trace, cache_for(trace, 4), copy_s)
    ahead_s = seconds(trace, cache_for(trace, 4), copy_s, Guesses(experts_NLW=right))
    astray_s = seconds(trace, cache_for(trace, 4), copy_s, Guesses(experts_NLW=wrong))
    assert ahead_s < plain_s < astray_s
    assert ahead_s < len(trace) * 6 * (AROUND_S + 2 * EXPERT_S) * 1.2
