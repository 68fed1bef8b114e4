"""Small regions as loops: what torch gives, operation by operation, or another compiler's region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from lightwork.compile import split
from lightwork.compile.backends import Code, Eager, Function
from lightwork.compile.loops import MOST_WORK, Loops
from lightwork.compile.zoo import ZOO, inputs, network

NAN, INF = float("nan"), float("inf")


@dataclass
class Listed:
    """Another compiler that lists what it was given."""

    given: list[str] = field(default_factory=list)

    def compile(self, region: Code, example: Sequence[Tensor]) -> Function:
        self.given.append(region.place)
        return Eager().compile(region, example)


def compiled(function, *example) -> tuple[Function, Listed]:
    other = Listed()
    code = Code(nn.Module(), lambda root, *tensors: (function(*tensors),), {}, "here")
    with torch.no_grad():
        return Loops(other).compile(code, example), other


LAYER = nn.Linear(6, 4)
ODD = torch.tensor([[0.5, NAN, -1.0, INF, 2.0, 2.0], [3.0, 1.0, -INF, 3.0, 0.0, -2.0]])
CASES = {
    "linear": lambda x: LAYER(x),
    "gate": lambda x: torch.sigmoid(LAYER(x)).mean() > 0.5,
    "relu": lambda x: torch.relu(x),
    "tanh, exp, abs": lambda x: torch.tanh(x) + torch.exp(-x.abs()),
    "numbers": lambda x: (2 - x) * 0.8 / 3 + 1,
    "softmax of rows": lambda x: x.softmax(-1),
    "softmax of columns": lambda x: x.softmax(0),
    "sum of some": lambda x: x.sum(0),
    "sum that keeps": lambda x: x - x.sum(1, keepdim=True),
    "mean, max, min": lambda x: x.mean() + x.max() - x.min(),
    "norm": lambda x: x.norm(),
    "greatest of rows": lambda x: x.amax(-1),
    "argmax of rows": lambda x: x.argmax(-1),
    "argmax of columns": lambda x: x.argmax(0),
    "argmax of all": lambda x: x.argmax(),
    "transposed product": lambda x: x.T @ x,
    "view of a transpose": lambda x: x.T.reshape(3, 4) * 2,
    "one element": lambda x: x[-1, 2],
    "the input again": lambda x: x,
    "a transpose": lambda x: x.T,
    "joined": lambda x: torch.cat([x, x * 2], dim=1),
    "chosen": lambda x: torch.where(x > 0, x, x * 0.1),
    "doubles": lambda x: x.norm().double() > 1.0,
    "counted": lambda x: (x > 0.25).sum(),
    "a count and a fraction": lambda x: (x > 0).sum() > 0.5,
    "made here": lambda x: torch.zeros(2) + torch.ones_like(x[:, 0]),
    "both": lambda x: torch.logical_and(x > 0, x < 1),
    "expanded": lambda x: x.mean(1, keepdim=True).expand(2, 3) * 2,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("x", [torch.linspace(-2, 3, 12).reshape(2, 6), ODD], ids=["plain", "odd"])
def test_an_operation_gives_what_torch_gives(name, x):
    run, other = compiled(CASES[name], x)
    assert not other.given
    with torch.no_grad():
        wanted = CASES[name](x)
    torch.testing.assert_close(run(x)[0], wanted, equal_nan=True)


def test_inputs_of_any_strides_and_of_none():
    def function(x: Tensor, total: Tensor) -> Tensor:
        return x * total + 1

    x = torch.randn(3, 4).T
    run, other = compiled(function, x, torch.tensor(2.0))
    assert not other.given
    torch.testing.assert_close(run(x, torch.tensor(3.0))[0], function(x, torch.tensor(3.0)))


def test_results_are_not_the_inputs():
    x = torch.ones(2, 2)
    run, _ = compiled(lambda x: x, x)
    run(x)[0].fill_(5)
    assert x.sum() == 4


SIDE = int(MOST_WORK**0.5)


@pytest.mark.parametrize(
    ("function", "example"),
    [
        (lambda x: nn.functional.avg_pool1d(x, 2), torch.ones(1, 1, 8)),
        (lambda x: x @ x, torch.ones(SIDE, SIDE)),
        (lambda x: x + 1, torch.ones(2, dtype=torch.bfloat16)),
        (lambda x: torch.add(x, x, alpha=2), torch.ones(2)),
    ],
    ids=["an operation", "the size", "a type", "a factor"],
)
def test_what_is_not_for_loops_goes_to_the_other_compiler(function, example):
    run, other = compiled(function, example)
    assert other.given == ["here"]
    torch.testing.assert_close(run(example)[0], function(example))


def test_equal_code_with_other_weights_gives_other_results():
    x = torch.ones(1, 6)
    layers = [nn.Linear(6, 4) for _ in range(2)]
    with torch.no_grad():
        results = [compiled(layer, x)[0](x)[0] for layer in layers]
        for layer, result in zip(layers, results, strict=True):
            torch.testing.assert_close(result, layer(x))


def test_the_zoo_is_loops_but_for_pooling():
    other = Listed()
    for kind in ZOO:
        host = split(network(kind, 3), Loops(other))
        for x in inputs(50, 1):
            host(x)
    assert len(other.given) == 1
