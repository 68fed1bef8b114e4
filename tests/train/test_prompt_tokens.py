"""Prompt tokens: what is trained is only them, it is what decoding will compute, and it gets better."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from test_pretrain import SPEC, TOKENIZER, train

from lightwork.agents.worlds.lessons import asked
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.errors import UsageError
from lightwork.models.weights import Weights
from lightwork.train.pretrain import Batch, Settings, predict
from lightwork.train.prompt_tokens import (
    RANKS,
    accuracy,
    as_batches,
    initial_prompts,
    look_ahead,
    train_prompts,
)

TEXTS = [([5, 9, 200, 31, 7, 77, 3, 8], 3), ([1, 2, 3, 4, 5, 6], 2)]


@pytest.fixture(scope="module")
def weights() -> Weights:
    found, _ = train(30)
    for tensor in found.tensors():
        tensor.requires_grad_(False)
    return found


def test_prompts_say_what_the_same_tokens_would_say_behind_the_cut(weights: Weights) -> None:
    """With embeddings of tokens, guesses are the logits of the text cut and these tokens behind it."""
    chosen = torch.tensor([11, 30, 4])
    ahead = look_ahead(weights, SPEC, weights.embed[chosen], next(as_batches(TEXTS, 2)))
    assert ahead.there.sum(1).tolist() == [[4, 3, 2], [3, 2, 1]]
    for line, (tokens, given) in enumerate(TEXTS):
        for cut in range(given - 1, len(tokens) - 2):
            number = cut - given + 1
            whole = torch.tensor([[*tokens[: cut + 1], *chosen.tolist(), 0]])
            scored = torch.arange(whole.shape[1])[None] > cut + 1
            batch = Batch(tokens_BT=whole, positions_BT=torch.arange(whole.shape[1])[None], scored_BT=scored)
            expected, _ = predict(weights, SPEC, batch)
            torch.testing.assert_close(ahead.guesses[line, number], expected, atol=1e-5, rtol=1e-4)
            for i in range(len(chosen)):
                assert bool(ahead.there[line, number, i]) == (cut + 2 + i < len(tokens))
                if ahead.there[line, number, i]:
                    assert int(ahead.said[line, number, i]) == tokens[cut + 2 + i]


def test_virtual_tokens_see_their_like_and_are_averaged(weights: Weights) -> None:
    ones, others, batch = torch.tensor([11, 30]), torch.tensor([4, 9]), next(as_batches(TEXTS, 2))
    apart = [look_ahead(weights, SPEC, weights.embed[chosen], batch) for chosen in (ones, others)]
    both = weights.embed[torch.stack((ones, others), 1).reshape(-1)]
    together = look_ahead(weights, SPEC, both, batch, 2)
    expected = (apart[0].guesses + apart[1].guesses) / 2
    torch.testing.assert_close(together.guesses, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(together.there, apart[0].there)
    assert torch.equal(together.said, apart[0].said)
    assert accuracy(both, weights, SPEC, as_batches(lessons(8), 4), virtual=2).shape == (2, RANKS)


def test_own_logits_are_those_of_the_text(weights: Weights) -> None:
    tokens, given = TEXTS[0]
    ahead = look_ahead(weights, SPEC, weights.embed[:2], next(as_batches(TEXTS[:1], 1)))
    batch = Batch(
        tokens_BT=torch.tensor([tokens]),
        positions_BT=torch.arange(len(tokens))[None],
        scored_BT=torch.ones(1, len(tokens), dtype=torch.bool),
    )
    own, _ = predict(weights, SPEC, batch)
    torch.testing.assert_close(ahead.own[0, 0], own[given : given + 2], atol=1e-5, rtol=1e-4)


def lessons(num: int) -> list[tuple[list[int], int]]:
    """Answers as if the model had given them."""
    prompts = asked(TOKENIZER, PlanWorld(), Random(0), 3 * num)
    longer = [(b, a) for a, b in pairwise(prompts) if b[: len(a)] == a]
    return [(tokens, len(before)) for tokens, before in longer[:num]]


def test_training_moves_the_prompts_alone_and_lowers_the_loss(weights: Weights) -> None:
    texts = lessons(8)
    before = [tensor.clone() for tensor in weights.tensors()]
    prompts = initial_prompts(weights, 3, seed=0)
    started = prompts.detach().clone()
    settings = Settings(steps=12, learning_rate=5e-2, warmup_steps=1, weight_decay=0.0)
    losses = [p.loss for p in train_prompts(prompts, weights, SPEC, as_batches(texts, 4, 6), settings)]
    assert losses[-2] < losses[0]  # of the same texts
    assert losses[-1] < losses[1]
    assert prompts.shape == (3, SPEC.hidden_size)
    assert not torch.equal(prompts, started)
    assert all(torch.equal(a, b) for a, b in zip(before, weights.tensors(), strict=True))


def test_accuracies_fall_by_rank_and_sum_to_less_than_one(weights: Weights) -> None:
    right = accuracy(initial_prompts(weights, 2, seed=1), weights, SPEC, as_batches(lessons(8), 4))
    assert right.shape == (2, RANKS)
    assert (np.diff(right) <= 0.0).all()
    assert (right.sum(1) <= 1.0 + 1e-9).all()
    assert right.sum() > 0.0


def test_texts_without_own_tokens_say_nothing(weights: Weights) -> None:
    prompts = initial_prompts(weights, 3, seed=0)
    with pytest.raises(UsageError, match="said itself"):
        look_ahead(weights, SPEC, prompts, next(as_batches([([1, 2, 3], 2)], 1)))
    with pytest.raises(UsageError, match="3 prompts"):
        accuracy(prompts, weights, SPEC, as_batches([([1, 2, 3, 4], 1)], 1))
