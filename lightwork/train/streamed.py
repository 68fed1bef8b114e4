"""Training a model most of whose layers are elsewhere: a window of them passes forward, then backward.

Weights and gradients are in host memory, where the optimiser finds them; what computes is an arena of a few
slots. Backward computes a layer again from the input that was kept: it is in a slot once each way, and its
gradients leave with it. `memory.streamed` does here what it does for inference, in another order of uses, in
which the end of each way is the beginning of the next.

R rows  d hidden
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.memory.residencies import Residency
from lightwork.memory.residents import Residents
from lightwork.memory.streamed import Stream, copies, one_pass
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import Attend, block, embed, logits, normalise, rotation
from lightwork.models.weights import Layer, Weights
from lightwork.runtime.effects import Compute, Move, Spawn
from lightwork.runtime.threads import ThreadWorld
from lightwork.train.pretrain import Batch, dense_attention

Block = Callable[[int, Tensor, Layer], Tensor]
"""(number of a layer, its input, its weights) -> its output."""


class StreamedLayers:
    """The layers of a model in training, on the slots of a policy with a ring.

    weights: in host memory; their gradients are set by backward. residents: counts copies, and asserts that
    what is in the arena is no more than cap_bytes. One pass runs at a time.
    """

    def __init__(self, weights: Weights, spec: ModelSpec, policy: Residency[Any]) -> None:
        assert policy.ring is not None, "only a policy that streams"
        self.weights, self.spec = weights, spec
        self.names = [f"layer {i}" for i in range(spec.num_layers)]
        self._numbers = {name: i for i, name in enumerate(self.names)}
        sizes = {
            name: sum(t.nbytes for _, t in _tensors(weights.layers[i])) for name, i in self._numbers.items()
        }
        num_slots = min(policy.ring.slots, len(sizes))
        order = [*self.names, *reversed(self.names)]
        self.residents = Residents(sizes, num_slots * max(sizes.values()), policy, order)
        slot = self.residents.slot_bytes // weights.embed.element_size()
        self.arena = torch.empty(self.residents.num_slots, slot, dtype=weights.embed.dtype)
        self._stream = Stream(self.residents)
        self._world = ThreadWorld({Move: _mover(weights, self.arena)})
        numbers = self._numbers
        child = copies(self._stream, lambda name, slot: Move((numbers[name], slot), "host", "memory"))
        self._world.perform(Spawn(child, "weights"))
        weakref.finalize(self, _stop, self._world, self._stream)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy of the scored tokens, as `pretrain` has it; differentiable."""
        tokens, scored = batch.tokens_BT, batch.scored_BT[:, 1:]
        positions_R = batch.positions_BT[:, :-1].reshape(-1)
        x_Rd = embed(self.weights, tokens[:, :-1].reshape(-1), positions_R)
        x_Rd = self.apply(x_Rd, positions_R, dense_attention(len(tokens), self.spec))
        hidden_Nd = normalise(self.weights, self.spec, x_Rd)[scored.reshape(-1)]
        return F.cross_entropy(logits(self.weights, hidden_Nd), tokens[:, 1:][scored])

    def apply(self, x_Rd: Tensor, positions_R: Tensor, attend: Attend) -> Tensor:
        """Through all layers. What is in the arena is brought to what the optimiser has made of it."""
        for name, i in self._numbers.items():
            if name in self.residents:
                _copy(self.weights.layers[i], self.arena[self.residents.slot(name)])
        cos_sin = rotation(self.spec, positions_R, x_Rd.dtype)

        def compute(i: int, x_Rd: Tensor, layer: Layer) -> Tensor:
            return block(i, x_Rd, layer, self.spec, cos_sin, attend)

        found: Tensor = _Pass.apply(x_Rd, self, compute)  # type: ignore[no-untyped-call]
        return found

    def forward(self, x_Rd: Tensor, compute: Block) -> tuple[Tensor, list[Tensor]]:
        """What the layers make of x, and what each of them was given."""
        given: list[Tensor] = []

        def one(name: str, slot: int, x_Rd: Tensor) -> Tensor:
            given.append(x_Rd)
            i = self._numbers[name]
            return compute(i, x_Rd, _views(self.weights.layers[i], self.arena[slot]))

        return self._run(self.names, one, x_Rd), given

    def backward(self, dy_Rd: Tensor, compute: Block, given: list[Tensor]) -> Tensor:
        """The gradient of the layers' input; those of their weights are added in host memory."""

        def one(name: str, slot: int, dy_Rd: Tensor) -> Tensor:
            i = self._numbers[name]
            layer = _views(self.weights.layers[i], self.arena[slot])
            with torch.enable_grad():
                leaves = [t.requires_grad_() for _, t in _tensors(layer)]
                x_Rd = given.pop().detach().requires_grad_()
                dx_Rd, *gradients = torch.autograd.grad(compute(i, x_Rd, layer), [x_Rd, *leaves], dy_Rd)
            for (_, weight), gradient in zip(_tensors(self.weights.layers[i]), gradients, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
            return dx_Rd

        return self._run([*reversed(self.names)], one, dy_Rd)

    def _run(self, names: list[str], one: Callable[[str, int, Tensor], Tensor], x: Tensor) -> Tensor:
        def use(name: str, slot: int, x: Tensor) -> Compute:
            return Compute((), one, (name, slot, x), name)

        result: Tensor = self._world.run(one_pass(self._stream, names, use, x))
        return result


class _Pass(torch.autograd.Function):
    """All layers as one operation."""

    @staticmethod
    def forward(ctx: Any, x_Rd: Tensor, layers: StreamedLayers, compute: Block) -> Tensor:
        y_Rd, given = layers.forward(x_Rd, compute)
        ctx.layers, ctx.compute, ctx.given = layers, compute, given
        return y_Rd

    @staticmethod
    def backward(ctx: Any, dy_Rd: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layers.backward(dy_Rd, ctx.compute, ctx.given), None, None


def _tensors(layer: Layer) -> list[tuple[str, Tensor]]:
    return [(f.name, t) for f in fields(layer) if (t := getattr(layer, f.name)) is not None]


def _views(like: Layer, slot: Tensor) -> Layer:
    """The weights of a layer in a slot, each a tensor of its own."""
    found, at = {}, 0
    for name, tensor in _tensors(like):
        # Not detach(): its result would count writes to other slots as writes to itself.
        found[name] = slot[at : at + tensor.numel()].view(tensor.shape).data
        at += tensor.numel()
    return Layer(**found)


def _copy(layer: Layer, slot: Tensor) -> None:
    with torch.no_grad():
        for (_, into), (_, tensor) in zip(_tensors(_views(layer, slot)), _tensors(layer), strict=True):
            into.copy_(tensor)


def _mover(weights: Weights, arena: Tensor) -> Callable[[Move], None]:
    """What copies, without the object whose thread it runs on: that must end with it."""

    def move(effect: Move) -> None:
        number, slot = effect.x
        _copy(weights.layers[number], arena[slot])

    return move


def _stop(world: ThreadWorld, stream: Stream) -> None:
    world.perform(stream.stop())
