"""Traces of which experts rows took, and what they say about the next layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightwork import models
from lightwork.errors import RangeError
from lightwork.models.routing import Affinity, Recorder, RoutingTrace
from lightwork.models.transformer import unseen
from lightwork.testing import text_logits


def trace_of(chosen: list[list[int]], num_experts: int) -> RoutingTrace:
    """One expert per token."""
    found = np.array(chosen)[:, :, None]
    return RoutingTrace(chosen_NLK=found, num_experts=num_experts, layers=tuple(range(found.shape[1])))


def test_a_forward_tells_which_experts_its_rows_take(checkpoint: Callable[..., Path]) -> None:
    """Of the layers that have any; by hand from what the router is given."""
    folder = checkpoint("qwen3_moe", num_experts=6, num_experts_per_tok=2, mlp_only_layers=[1])
    model = models.load(str(folder))
    tokens = list(range(40, 60))
    plain = text_logits(model, tokens)
    recorder, told = Recorder(), []

    def routed(layer: int, probable_RE: torch.Tensor, chosen_RK: torch.Tensor) -> None:
        recorder(layer, probable_RE, chosen_RK)
        told.append((layer, probable_RE, chosen_RK))

    model.routed = routed
    assert np.array_equal(text_logits(model, tokens), plain)
    model.routed = unseen
    trace = recorder.trace()
    assert (trace.layers, trace.num_experts, trace.chosen_NLK.shape) == ((0, 2), 6, (20, 2, 2))
    for (layer, probable_RE, chosen_RK), at in zip(told, (0, 2), strict=True):
        assert layer == at
        torch.testing.assert_close(probable_RE.sum(1), torch.ones(20))
        assert torch.equal(chosen_RK, probable_RE.topk(2).indices)
    assert trace.loads().sum(1).tolist() == [40, 40]
    assert np.array_equal(trace.loads()[0], F.one_hot(told[0][2], 6).sum((0, 1)).numpy())
    assert np.array_equal(trace.part(3, 5).first_NL, trace.first_NL[3:5])


def test_affinity_counts_who_follows_whom() -> None:
    affinity = Affinity.of(trace_of([[0, 1, 2], [0, 1, 0], [2, 1, 2], [0, 0, 1]], 3))
    assert affinity.joint_LEE[0].tolist() == [[0.25, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.25, 0.0]]
    assert affinity.joint_LEE.sum((1, 2)).tolist() == [1.0, 1.0]
    assert (affinity.num_layers, affinity.num_experts) == (3, 3)


def test_what_follows_is_predicted_by_conditional_probability() -> None:
    affinity = Affinity.of(trace_of([[0, 1]] * 5 + [[0, 2]] * 3 + [[1, 2]] * 2 + [[1, 0]], 4))
    assert affinity.likely(0, [0], 2) == [1, 2]
    assert affinity.likely(0, [1], 2) == [2, 0]
    assert affinity.likely(0, [0, 1], 3) == [2, 1, 0]  # 3/8 + 2/3, 5/8, 1/3
    assert affinity.likely(0, [3], 2) == [1, 2]  # unseen: what is taken most, of equals the first


def test_what_is_no_trace_is_refused() -> None:
    with pytest.raises(RangeError, match="experts 0 to 7") as caught:
        trace_of([[0, 7]], 4)
    assert caught.value.expected == "0 to 3"
    with pytest.raises(RangeError, match="shape"):
        RoutingTrace(chosen_NLK=np.zeros((3, 2), np.int64), num_experts=4, layers=(0, 1))
    with pytest.raises(RangeError, match="no row was routed"):
        Recorder().trace()
    with pytest.raises(RangeError, match="0 tokens in 2 layers"):
        Affinity.of(trace_of([[0, 1]], 4).part(0, 0))
