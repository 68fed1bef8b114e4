"""Speculation over layers: the model's own output, whatever the guess; hits and misses are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightwork import models
from lightwork.decode.sampling import Sampling
from lightwork.errors import RangeError
from lightwork.memory.kv import KVCache
from lightwork.models.held_out import read_held_out
from lightwork.models.model import Model
from lightwork.models.speculation import Speculation, pruned
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.plan import Plan, make_engine
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load
from lightwork.testing import text_logits, tiny_checkpoint

TEXTS = [text.tokens[:40].tolist() for text in read_held_out(models.resolve("tiny:llama"))[:3]]


def guessing(keep: float, tolerance: float) -> tuple[Model, Speculation]:
    model = models.load("tiny:llama")
    layers = [pruned(layer, keep) for layer in model.weights.layers[3:6]]
    made = Speculation(model, layers, first=3, tolerance=tolerance)
    model.hidden = made.hidden
    return model, made


def answers(model: Model) -> list[list[int]]:
    kernel, kv = Kernel(WallClock()), KVCache(64, 16)
    engine = make_engine(Plan(), kernel, kv, LocalRunner(kernel, model, kv), 128, model.spec.vocab_size)
    greedy = Sampling(temperature=0.0)
    asked = [Request(prompt=tuple(text), max_tokens=20, sampling=greedy) for text in TEXTS]
    return [seq.tokens for seq in run_load(engine, [0.0] * len(asked), asked)]


@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_without_tolerance_the_output_is_the_models_own(keep: float) -> None:
    model, made = guessing(keep, 0.0)
    assert np.array_equal(text_logits(model, TEXTS[0]), text_logits(models.load("tiny:llama"), TEXTS[0]))
    assert answers(model) == answers(models.load("tiny:llama"))
    assert made.hits == 0 < made.misses


def test_a_guess_that_is_right_is_taken() -> None:
    model, made = guessing(1.0, 0.0)
    assert np.array_equal(text_logits(model, TEXTS[0]), text_logits(models.load("tiny:llama"), TEXTS[0]))
    assert (made.hits, made.misses) == (1, 0)


def test_a_tolerance_lets_near_guesses_through_and_no_others() -> None:
    plain = text_logits(models.load("tiny:llama"), TEXTS[0])
    model, made = guessing(0.9, 0.5)
    near = text_logits(model, TEXTS[0])
    assert made.hits == 1
    assert np.abs(near - plain).max() > 0.0
    assert (near.argmax(-1) == plain.argmax(-1)).mean() > 0.5
    model, made = guessing(0.9, 1e-4)
    assert np.array_equal(text_logits(model, TEXTS[0]), plain)
    assert made.misses == 1


def test_what_cannot_be_guessed_is_refused(tmp_path) -> None:
    model = models.load("tiny:llama")
    layers = model.weights.layers
    for surrogates, first, tolerance in ((layers[:0], 0, 0.0), (layers, 0, 0.0), (layers[:1], 0, -1.0)):
        with pytest.raises(RangeError):
            Speculation(model, surrogates, first=first, tolerance=tolerance)
    with pytest.raises(RangeError):
        pruned(layers[0], 0.0)
    mixtral = models.load(str(tiny_checkpoint(tmp_path, "mixtral")))
    with pytest.raises(RangeError):
        pruned(mixtral.weights.layers[0], 0.5)


def test_plain_mlps_with_biases_are_pruned_too(tmp_path) -> None:
    layer = models.load(str(tiny_checkpoint(tmp_path, "gpt2"))).weights.layers[0]
    half = pruned(layer, 0.5)
    assert half.up_bias is not None
    assert half.up.shape[0] == half.up_bias.shape[0] == half.down.shape[1] == layer.down.shape[1] // 2
    assert all(torch.equal(a, b) for a, b in ((half.qkv, layer.qkv), (half.norm2, layer.norm2)))
