"""A forward whose experts are opened up: the same bits with nothing changed, and what changing it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightwork import models
from lightwork.errors import RangeError
from lightwork.kernels.rows import Rows
from lightwork.models.mixture import Counted, LookAhead, Mix, Mixture, kept, through
from lightwork.models.model import Model
from lightwork.models.routing import Recorder
from lightwork.models.skips import Skip
from lightwork.models.skips.adaptive_top_k import AdaptiveTopK
from lightwork.models.skips.expert_top_p import ExpertTopP
from lightwork.testing import random_adapter, text_logits

TOKENS = list(range(40, 60))


def opened(checkpoint: Callable[..., Path], family: str = "qwen3_moe") -> Model:
    dense = {"mlp_only_layers": [1], "num_experts": 6} if family == "qwen3_moe" else {}
    return models.load(str(checkpoint(family, **dense)))


def mixed(model: Model, mix: Mix) -> np.ndarray:
    model.hidden = through(model, mix)
    return text_logits(model, TOKENS)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_with_nothing_changed_bits_are_those_of_the_model(
    checkpoint: Callable[..., Path], family: str
) -> None:
    model = opened(checkpoint, family)
    plain = text_logits(model, TOKENS)
    mixture = Mixture(weights=model.weights, spec=model.spec)
    assert np.array_equal(mixed(model, mixture), plain)
    assert np.array_equal(mixed(model, LookAhead(mixture)), plain)
    backwards = Mixture(
        weights=model.weights,
        spec=model.spec,
        bring=lambda i, needed: (
            (e, model.weights.layers[i].up[e], model.weights.layers[i].down[e]) for e in reversed(needed)
        ),
    )
    assert np.array_equal(mixed(model, backwards), plain)


def test_adapters_add_what_they_add_to_the_model(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint)
    plain = text_logits(model, TOKENS)
    version = model.adapters.put(random_adapter(model.spec, "other", only="o_proj"))
    rows = replace(Rows.of_text(np.array(TOKENS), len(TOKENS)), models=[version])
    adapted = model.logits(rows, model.new_kv(1, len(TOKENS)))
    model.hidden = through(model, Mixture(weights=model.weights, spec=model.spec))
    assert np.array_equal(model.logits(rows, model.new_kv(1, len(TOKENS))), adapted)
    assert not np.array_equal(adapted, plain)


def test_grouped_rows_are_those_of_a_loop_over_tokens(checkpoint: Callable[..., Path]) -> None:
    """Dropless: one row after another gives the same bits as all rows sorted by expert."""
    model = opened(checkpoint)
    mixture = Mixture(weights=model.weights, spec=model.spec)
    x_Rd = torch.randn(24, model.spec.hidden_size, generator=torch.Generator().manual_seed(0))
    one_by_one = torch.cat([mixture(0, x_Rd[r : r + 1]) for r in range(24)])
    torch.testing.assert_close(mixture(0, x_Rd), one_by_one, rtol=1e-5, atol=1e-6)


def test_the_next_router_is_asked_with_this_layers_input(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint)
    inputs: dict[int, torch.Tensor] = {}
    mixture = Mixture(weights=model.weights, spec=model.spec)
    look = LookAhead(mixture)

    def seeing(i: int, x_Rd: torch.Tensor) -> torch.Tensor:
        inputs[i] = x_Rd
        return look(i, x_Rd)

    mixed(model, seeing)
    told: dict[int, torch.Tensor] = {}
    asked = Mixture(
        weights=model.weights, spec=model.spec, routed=lambda i, probable_RE, _: told.update({i: probable_RE})
    )
    asked(2, inputs[0])  # layer 1 has no experts
    assert look.next_NLE().shape == (len(TOKENS), 1, 6)
    assert np.array_equal(look.next_NLE()[:, 0], told[2].numpy())


def test_usage_is_counted_by_rows_and_by_what_they_are_given(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint)
    counted, recorder = Counted(model.spec), Recorder()
    mixture = Mixture(weights=model.weights, spec=model.spec, watch=counted, routed=recorder)
    mixed(model, mixture)
    usage = counted.usage
    assert np.array_equal(usage.loads_LE, recorder.trace().loads())
    assert ((usage.outputs_LE > 0) == (usage.loads_LE > 0)).all()


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (AdaptiveTopK(threshold=0.0), [[1, 1, 1], [1, 1, 1]]),
        (AdaptiveTopK(threshold=0.25), [[1, 1, 0], [1, 0, 0]]),
        (AdaptiveTopK(threshold=1.0), [[1, 0, 0], [1, 0, 0]]),
        (ExpertTopP(share=1.0), [[1, 1, 1], [1, 1, 1]]),
        (ExpertTopP(share=0.85), [[1, 1, 1], [1, 0, 0]]),
        (ExpertTopP(share=0.75), [[1, 1, 0], [1, 0, 0]]),
        (ExpertTopP(share=0.1), [[1, 0, 0], [1, 0, 0]]),
    ],
    ids=repr,
)
def test_which_experts_are_left_out(skip: Skip, expected: list[list[int]]) -> None:
    """Of gates that need not sum to 1."""
    gates_RK = torch.tensor([[0.20, 0.12, 0.08], [0.45, 0.04, 0.01]])
    assert skip.keep(gates_RK).int().tolist() == expected
    left = kept(gates_RK, skip, normalise=True)
    torch.testing.assert_close(left.sum(-1), torch.ones(2))
    assert torch.equal(kept(gates_RK, skip, normalise=False), gates_RK * torch.tensor(expected))


def test_what_is_left_out_is_not_brought(checkpoint: Callable[..., Path]) -> None:
    model = opened(checkpoint)
    plain = text_logits(model, TOKENS)
    counts = {}
    for skip in (None, AdaptiveTopK(threshold=0.3), AdaptiveTopK(threshold=1.0)):
        counted = Counted(model.spec)
        mixture = Mixture(weights=model.weights, spec=model.spec, skip=skip, watch=counted)
        differs = np.abs(mixed(model, mixture) - plain).max()
        assert (differs == 0) == (skip is None)
        counts[skip] = int(counted.usage.loads_LE.sum())
    assert [*counts.values()] == sorted(counts.values(), reverse=True)
    assert counts[None] == 2 * counts[AdaptiveTopK(threshold=1.0)] == 2 * 2 * len(TOKENS)


def test_shares_that_mean_nothing_are_refused() -> None:
    with pytest.raises(RangeError, match=r"threshold is 1\.5"):
        AdaptiveTopK(threshold=1.5)
    with pytest.raises(RangeError, match="share is 0"):
        ExpertTopP(share=0.0)
