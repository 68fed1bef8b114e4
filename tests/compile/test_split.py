"""Networks split at their branches: equal to eager on every way, and refusals that name the line."""

from __future__ import annotations

import ast

import pytest
import torch
from torch import Tensor, nn

from lightwork.compile import split
from lightwork.compile.backends import Eager
from lightwork.compile.zoo import ZOO, AdaptiveDepth, LayerSkip, inputs, network
from lightwork.errors import RangeError, SpecError, UsageError


@pytest.mark.parametrize("kind", ZOO, ids=lambda k: k.__name__)
def test_zoo_equals_eager_alone_and_in_a_batch_that_parts(kind):
    module, samples = network(kind, 3), inputs(200, 1)
    host = split(module)
    with torch.no_grad():
        wanted = [module(x) for x in samples]
    for one, other, want in zip(map(host, samples), host.batch([(x,) for x in samples]), wanted, strict=True):
        torch.testing.assert_close(one, want)
        torch.testing.assert_close(other, want, rtol=1e-4, atol=1e-5)
    sides = host.coverage()
    assert len(sides) >= 2
    taken = {(way.place, way.outcome) for way in sides if way.times}
    assert taken == {(way.place, way.outcome) for way in sides}


def test_the_hosts_program_is_python_and_its_regions_are_as_worked_by_hand():
    host = split(network(AdaptiveDepth, 3), Eager())
    ast.parse(host.source)
    first, body, head = host.regions
    assert (first.inputs, first.outputs) == (("x",), ("p_0",))
    assert body.inputs == ("x",)
    assert set(body.outputs) == {"x", "p_0"}
    assert head.inputs == ("x",)
    assert "branch" not in "".join(r.source for r in host.regions)


def test_what_was_never_taken_is_reported():
    host = split(network(LayerSkip, 3), Eager())
    host(inputs(1, 0)[0])
    untaken = [way for way in host.coverage() if not way.times]
    assert untaken
    assert all("zoo.py:" in way.place for way in untaken)


class SideEffect(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.add_(1).sum() > 0:
            return x
        return -x


class Execs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        exec("x = x + 1")
        return x


class Generates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        yield x


class Stores(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return x


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x


@pytest.mark.parametrize("kind", [SideEffect, Execs, Generates, Stores, InPlace])
def test_what_cannot_be_split_is_refused_by_file_and_line(kind):
    with pytest.raises(SpecError, match=rf"test_split\.py:{kind.forward.__code__.co_firstlineno + 1}: "):
        split(kind().eval())


class Hidden(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, x.sum().__float__())


def test_a_value_read_inside_a_region_is_refused_when_it_is_compiled():
    host = split(Hidden().eval())
    with pytest.raises(SpecError, match=r"test_split\.py:\d+"):
        host(torch.ones(2))


def test_only_inference_and_batches_with_samples():
    with pytest.raises(UsageError, match="in training"):
        split(LayerSkip())
    with pytest.raises(RangeError, match="without samples"):
        split(network(LayerSkip, 0), Eager()).batch([])
