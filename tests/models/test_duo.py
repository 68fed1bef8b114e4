"""Big, small or no MLP by token and layer: equal to plain models where it must be, counted, and refused where
nothing was chosen."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given as hypothetically
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightwork.errors import RangeError
from lightwork.models import transformer
from lightwork.models.duo import BIG, SKIP, SMALL, Duo, forward, given
from lightwork.models.duo_oracle import (
    Prefixes,
    coordinate_search,
    difficulty,
    every_pattern,
    oracle,
)
from lightwork.models.duo_router import Gates
from lightwork.models.spec import ModelSpec
from lightwork.testing import tensors_read
from lightwork.train.duo import initial_duo
from lightwork.train.pretrain import dense_attention

LAYERS = 5
SPEC = ModelSpec(
    family="llama",
    vocab_size=40,
    hidden_size=32,
    num_layers=LAYERS,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    ffn_size=48,
    max_len=64,
    tied=True,
)
TOKENS = torch.randint(40, (24,), generator=torch.Generator().manual_seed(3))
AT = torch.arange(len(TOKENS))


@pytest.fixture(scope="module")
def duo() -> Duo:
    made = initial_duo(SPEC, 16, 0)
    for tensor in made.tensors():  # large enough that mistakes show
        tensor.requires_grad_(False).mul_(4.0 if tensor.ndim > 1 else 1.0)
    return made


def run(duo: Duo, choices_RL: Tensor) -> Tensor:
    return forward(duo, TOKENS, AT, dense_attention(1, SPEC), given(choices_RL))[0]


def drawn(seed: int = 0) -> Tensor:
    return torch.randint(3, (len(TOKENS), LAYERS), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("choice", [SMALL, BIG])
def test_one_choice_for_all_gives_the_bits_of_that_model(duo: Duo, choice: int) -> None:
    weights, spec = (duo.small, duo.small_spec) if choice == SMALL else (duo.big, duo.spec)
    plain = transformer.forward(weights, spec, TOKENS, AT, dense_attention(1, SPEC))
    assert torch.equal(run(duo, torch.full((len(TOKENS), LAYERS), choice)), plain)


def test_skipping_everywhere_leaves_attention_alone(duo: Duo) -> None:
    layers = [replace(layer, down=torch.zeros_like(layer.down)) for layer in duo.big.layers]
    plain = transformer.forward(replace(duo.big, layers=layers), SPEC, TOKENS, AT, dense_attention(1, SPEC))
    assert torch.equal(run(duo, torch.zeros(len(TOKENS), LAYERS)), plain)


def test_a_mixture_is_each_rows_own_choice(duo: Duo) -> None:
    choices = drawn()
    together = run(duo, choices)
    # By hand: both MLPs of all rows, and of each row the one it chose.
    attend = dense_attention(1, SPEC)
    x = transformer.embed(duo.big, TOKENS, AT)
    cos_sin = transformer.rotation(SPEC, AT, x.dtype)
    for i, (big, small) in enumerate(zip(duo.big.layers, duo.small.layers, strict=True)):
        x = x + transformer.attention(i, x, big, SPEC, cos_sin, attend)
        adds = [torch.zeros_like(x)]
        for layer, spec in ((small, duo.small_spec), (big, SPEC)):
            adds.append(transformer.mlp_down(transformer.mlp_up(x, layer, spec), layer))
        x = x + torch.stack(adds)[choices[:, i], AT]
    torch.testing.assert_close(together, transformer.normalise(duo.big, SPEC, x))


@pytest.mark.parametrize("seed", range(3))
def test_operations_counted_from_routing_are_those_executed(duo: Duo, seed: int) -> None:
    def executed(choices: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            run(duo, choices)
        return counter.get_total_flops()

    choices = drawn(seed)
    assert executed(choices) - executed(torch.zeros_like(choices)) == duo.mlp_flops(choices) > 0


def test_a_layer_that_all_skip_reads_no_mlp_weights(duo: Duo) -> None:
    choices = drawn()
    choices[:, 1], choices[:, 3] = SKIP, torch.where(choices[:, 3] == BIG, SMALL, choices[:, 3])
    with tensors_read() as read:
        run(duo, choices)
    mlps = {
        (name, i): layer.up.nbytes + layer.down.nbytes
        for name, weights in (("big", duo.big), ("small", duo.small))
        for i, layer in enumerate(weights.layers)
        if {layer.up.data_ptr(), layer.down.data_ptr()} <= read
    }
    assert {("big", 1), ("small", 1), ("big", 3)}.isdisjoint(mlps)
    assert ("small", 3) in mlps
    assert sum(mlps.values()) == duo.mlp_bytes(choices)


@pytest.mark.parametrize("wrong", [float("nan"), 3.0, -1.0, 1.5, float("inf")])
def test_what_is_no_choice_is_refused_with_its_layer_and_token(duo: Duo, wrong: float) -> None:
    choices = drawn().float()
    choices[7, 2] = wrong
    with pytest.raises(RangeError, match=r"choice of token 7 in layer 2 is"):
        run(duo, choices)
    with pytest.raises(RangeError, match=r"choice of token 7 in layer 2 is"):
        Prefixes(duo, TOKENS).losses(4, choices)


def test_a_router_that_gives_nan_is_refused_with_its_layer_and_token(duo: Duo) -> None:
    gates = Gates(weights=torch.zeros(LAYERS, LAYERS + 1, 32), bias=torch.ones(LAYERS, LAYERS + 1))
    gates.weights[3, 0, 5] = float("nan")
    with pytest.raises(RangeError, match=r"choice of token 0 in layer 3 is nan"):
        forward(duo, TOKENS, AT, dense_attention(1, SPEC), gates.choose(3))


@pytest.mark.parametrize("num_big", range(LAYERS + 1))
def test_a_router_spends_exactly_its_budget(duo: Duo, num_big: int) -> None:
    rng = torch.Generator().manual_seed(num_big)
    gates = Gates(
        weights=torch.randn(LAYERS, LAYERS + 1, 32, generator=rng), bias=torch.zeros(LAYERS, LAYERS + 1)
    )
    _, choices = forward(duo, TOKENS, AT, dense_attention(1, SPEC), gates.choose(num_big))
    assert ((choices == BIG).sum(1) == num_big).all()
    assert num_big in (0, LAYERS) or len(choices.unique(dim=0)) > 1


def test_a_budget_of_more_layers_than_there_are_is_refused() -> None:
    gates = Gates(weights=torch.zeros(LAYERS, LAYERS + 1, 32), bias=torch.zeros(LAYERS, LAYERS + 1))
    with pytest.raises(RangeError, match="1 to 6 big layers of 5"):
        gates.choose(torch.tensor([1, 6]))


def test_all_patterns_at_once_have_the_bits_of_each_alone(duo: Duo) -> None:
    patterns = every_pattern(LAYERS, (SKIP, SMALL, BIG))
    assert len(patterns) == 3**LAYERS
    prefixes = Prefixes(duo, TOKENS, drawn(5))
    together = prefixes.losses(20, patterns)
    assert torch.equal(together, torch.cat([prefixes.losses(20, one[None]) for one in patterns]))
    shuffled = torch.randperm(len(patterns), generator=torch.Generator().manual_seed(1))
    assert torch.equal(together[shuffled], prefixes.losses(20, patterns[shuffled]))


@pytest.mark.parametrize("at", [0, 1, 22])
def test_a_patterns_loss_is_that_of_a_forward_whose_last_row_has_it(duo: Duo, at: int) -> None:
    choices = drawn(at)
    context = choices.clone()
    context[at] = 2 - context[at]  # what the token was in others' eyes does not matter to itself
    upto = slice(at + 1)
    hidden, _ = forward(duo, TOKENS[upto], AT[upto], dense_attention(1, SPEC), given(choices[upto]))
    scores = transformer.logits(duo.big, hidden[-1:])
    expected = torch.nn.functional.cross_entropy(scores, TOKENS[at + 1][None])
    found = Prefixes(duo, TOKENS, context).losses(at, choices[at][None])[0]
    torch.testing.assert_close(found, expected)


def test_the_last_token_predicts_none(duo: Duo) -> None:
    with pytest.raises(RangeError, match="token 23 of a text of 24"):
        Prefixes(duo, TOKENS).losses(23, every_pattern(LAYERS))


def test_the_oracle_is_the_least_within_its_budget(duo: Duo) -> None:
    patterns = every_pattern(LAYERS)
    num_big = (patterns == BIG).sum(1)
    losses = Prefixes(duo, TOKENS).losses(9, patterns)
    for budget in range(LAYERS + 1):
        best = oracle(losses, num_big, budget)
        assert num_big[best] <= budget
        assert losses[best] == losses[num_big <= budget].min()
    assert difficulty(losses, patterns, 2) == losses[0] - losses[oracle(losses, num_big, 2)] >= 0.0
    with pytest.raises(RangeError, match="no pattern costs -1 or less"):
        oracle(losses, num_big, -1)


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(RangeError, match="3 choices in 12 layers are 531441 patterns"):
        every_pattern(12, (SKIP, SMALL, BIG))


@pytest.mark.parametrize("at", [3, 11, 19])
def test_coordinate_search_finds_what_trying_all_finds(duo: Duo, at: int) -> None:
    prefixes, costs = Prefixes(duo, TOKENS), duo.widths
    patterns = every_pattern(LAYERS, (SKIP, SMALL, BIG))
    budget = 2 * 48 + 16
    losses = prefixes.losses(at, patterns)
    least = losses[oracle(losses, costs[patterns].sum(1), budget)]
    starts = torch.tensor([[SKIP] * LAYERS, [SMALL] * LAYERS, [BIG, BIG, SKIP, SKIP, SKIP]])
    pattern, loss = coordinate_search(lambda some: prefixes.losses(at, some), starts, costs, budget)
    assert costs[pattern].sum() <= budget
    assert loss == prefixes.losses(at, pattern[None])[0] == least
    with pytest.raises(RangeError, match="a search starts at 240"):
        coordinate_search(lambda some: prefixes.losses(at, some), starts + 1, costs, 100)


@hypothetically(st.integers(0, 2**31), st.integers(2, 60))
@settings(max_examples=15, deadline=None)
def test_a_coordinate_search_never_ends_above_its_starts(seed: int, budget: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    table = torch.rand([3] * 4, generator=rng)
    costs = torch.tensor([0, 4, 16])

    def score(patterns: Tensor) -> Tensor:
        return table[tuple(patterns.T)]

    every = torch.tensor([*product(range(3), repeat=4)])
    starts = every[costs[every].sum(1) <= budget][:3]
    pattern, loss = coordinate_search(score, starts, costs, budget)
    assert loss == score(pattern[None])[0] <= score(starts).min()
    assert costs[pattern].sum() <= budget


def test_a_router_is_judged_by_the_pattern_it_gave(duo: Duo) -> None:
    rng = torch.Generator().manual_seed(0)
    gates = Gates(
        weights=torch.randn(LAYERS, LAYERS + 1, 32, generator=rng), bias=torch.zeros(LAYERS, LAYERS + 1)
    )
    everyone, choices = forward(duo, TOKENS, AT, dense_attention(1, SPEC), gates.choose(2))
    assert len(everyone) == len(TOKENS)
    prefixes = Prefixes(duo, TOKENS, choices)
    for at in range(23):
        assert torch.equal(prefixes.route(at, gates.choose(2))[0], choices[at])
    budgets = torch.arange(LAYERS + 1)
    together = prefixes.route(20, gates.choose(budgets), len(budgets))
    alone = [prefixes.route(20, gates.choose(k))[0] for k in range(LAYERS + 1)]
    assert torch.equal(together, torch.stack(alone))
