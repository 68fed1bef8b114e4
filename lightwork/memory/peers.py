"""A model part of whose layers are in the memory of a neighbour: a process (`peer`) that hands them over when
they are needed, as a device would over its link.

What is here lies in one arena of the size that is allowed; nothing else holds weights.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import CapacityError, LightworkError
from lightwork.kernels.rows import Rows
from lightwork.memory.spilled import one_pass, prefetch, spread
from lightwork.models import resolve
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.model import KVPool, paged
from lightwork.models.parts import each_part
from lightwork.models.spec import ModelSpec, read_json, read_spec
from lightwork.models.tokenizer import Tokenizer
from lightwork.models.transformer import Attend, embed, logits, normalise, run_layers
from lightwork.models.weights import Get, Layer, Weights, joined
from lightwork.runtime.child import Child, start_process
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Compute, Move, Spawn
from lightwork.runtime.progress import Progress
from lightwork.runtime.threads import ThreadWorld

SLOTS = 2
FLOAT_BYTES = 4
Shapes = Sequence[tuple[str, tuple[int, ...]]]
"""The weights of a layer, in the order in which they travel."""


class Arena:
    """Weights of so many bytes at most."""

    def __init__(self, nbytes: int) -> None:
        self._all = torch.zeros(nbytes // FLOAT_BYTES)
        self.used_bytes = 0

    def take(self, *shape: int) -> Tensor:
        """Raises CapacityError if there is not so much left."""
        begin = self.used_bytes // FLOAT_BYTES
        size = prod(shape)
        if begin + size > len(self._all):
            raise CapacityError(
                f"{FLOAT_BYTES * size} bytes of weights, and {self._all.nbytes - self.used_bytes} are free",
                expected=f"at most {self._all.nbytes} bytes in all",
                fix="allow more, or keep more layers with the peer",
            )
        self.used_bytes += FLOAT_BYTES * size
        return self._all[begin : begin + size].view(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOrder:
    """What a peer is to keep."""

    path: Path
    layers: Sequence[int]


class Pooled:
    """A model of which `device_bytes` are here and the other layers with a peer, in float32 on the CPU.

    away: those layers. fetch_s: how long one takes to come. Raises CapacityError if not even what every pass
    needs fits: embedding, head, and two slots for layers. reads_once, shared_keys: see `CompiledModel`.
    """

    reads_once = False
    shared_keys: Sequence[int] = ()

    def __init__(self, uri: str, device_bytes: int, progress: Progress | None = None) -> None:
        folder = resolve(uri)
        self.spec = read_spec(folder)
        self.tokenizer = Tokenizer(folder)
        self.generation: dict[str, Any] = read_json(folder, "generation_config.json", optional=True)
        self.arena = Arena(device_bytes)
        layer_bytes, other_bytes = _sizes(self.spec)
        self.away = _away(layer_bytes, other_bytes, device_bytes)
        self._layers, self._others = _load(folder, self.spec, frozenset(self.away), self.arena, progress)
        self._slots = [
            self.arena.take(max(layer_bytes) // FLOAT_BYTES) for _ in range(SLOTS if self.away else 0)
        ]
        self._peer: Child | None = None
        self._broken: BaseException | None = None
        self._passes = 0
        self.fetch_s = 0.0
        self._world = ThreadWorld({Move: self._fetch})
        if self.away:
            self._link, theirs = socket.socketpair()
            order = PeerOrder(path=folder.absolute(), layers=self.away)
            with theirs:
                self._peer = start_process("the peer", "lightwork.memory.peer", order, (theirs.fileno(),))
            self._shapes: dict[int, Shapes] = self._peer.wait()
            self.fetch_s = min(self._timed_fetch() for _ in range(2))
            fetch = prefetch(
                0, self.away, lambda layer, slot: Move((layer, slot), "peer:1", "memory"), slots=SLOTS
            )
            self._world.perform(Spawn(fetch, "prefetch"))

    @property
    def nbytes(self) -> int:
        """Of all weights, wherever they are."""
        return (
            self.arena.used_bytes
            - sum(slot.nbytes for slot in self._slots)
            + sum(FLOAT_BYTES * prod(shape) for i in self.away for _, shape in self._shapes[i])
        )

    def new_kv(self, num_blocks: int, block_size: int, *, shared: int | None = None) -> KVPool:
        return KVPool(self.spec, num_blocks, block_size, torch.float32, "cpu", shared)

    def new_host_kv(self, num_blocks: int, block_size: int) -> KVPool:
        return self.new_kv(num_blocks, block_size)

    def set_threads(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)

    def warm_up(self) -> None:
        self.logits(Rows.of_text(np.zeros(4, np.int64), 4), self.new_kv(1, 4))

    def close(self) -> None:
        """End the peer."""
        if self._peer is not None:
            self._world.fail(LightworkError("the model was closed"))
            self._peer.kill()
            self._link.close()

    @torch.inference_mode()
    def logits(self, rows: Rows, kv: KVPool) -> NDArray[np.float32]:
        """As `Model.logits`. Raises LightworkError once the peer has been lost."""
        if self._broken is not None:
            raise self._broken
        positions_R = torch.from_numpy(rows.positions)
        attend = paged(self.spec, rows, kv, "cpu")
        x_Rd = embed(self._others, torch.from_numpy(rows.tokens), positions_R)
        number, self._passes = self._passes, self._passes + 1

        def use(layer: int, slot: int | None, x_Rd: Tensor) -> Compute:
            return Compute(
                (), partial(self._compute, positions_R, attend), (layer, slot, x_Rd), f"layer {layer}"
            )

        try:
            whole = one_pass(0, number, x_Rd, self.spec.num_layers, self.away, use, slots=SLOTS)
            x_Rd = self._world.run(whole)
        except BaseException as error:  # slots and passes do not go together any more
            self._broken = error
            raise
        x_Nd = x_Rd[torch.from_numpy(rows.scored)]
        return logits(self._others, normalise(self._others, self.spec, x_Nd)).numpy()

    def _compute(
        self, positions_R: Tensor, attend: Attend, layer: int, slot: int | None, x_Rd: Tensor
    ) -> Tensor:
        weights = self._layers[layer] if slot is None else _views(self._slots[slot], self._shapes[layer])
        return run_layers([weights], self.spec, x_Rd, positions_R, attend, first=layer)

    def _fetch(self, effect: Move) -> None:
        layer, slot = effect.x
        size = FLOAT_BYTES * sum(prod(shape) for _, shape in self._shapes[layer])
        into = memoryview(self._slots[slot].numpy()).cast("B")[:size]
        try:
            self._link.sendall(layer.to_bytes(8, "little"))
            while into:
                came = self._link.recv_into(into)
                if not came:
                    raise OSError("it is gone")
                into = into[came:]
        except OSError as error:
            raise LightworkError(
                f"the peer that keeps layer {layer} was lost: {error}", fix="restart the server"
            ) from error

    def _timed_fetch(self) -> float:
        clock = WallClock()
        self._fetch(Move((self.away[0], 0), "peer:1", "memory"))
        return clock.now()


def layer_tensors(spec: ModelSpec, layer: int, get: Get) -> list[tuple[str, Tensor]]:
    """The weights of a layer, float32."""
    return [(part.name, joined(spec, part, get).float()) for part in each_part(spec) if part.layer == layer]


def _sizes(spec: ModelSpec) -> tuple[list[int], int]:
    """Bytes of each layer, and of what is outside of layers."""
    layers, others = [0] * spec.num_layers, 0
    for part in each_part(spec):
        size = FLOAT_BYTES * sum(prod(shape) for _, shape in part.tensors)
        if part.layer >= 0:
            layers[part.layer] += size
        elif part.name != "head" or not spec.tied:
            others += size
    return layers, others


def _away(layer_bytes: Sequence[int], other_bytes: int, device_bytes: int) -> list[int]:
    """The fewest layers that have to be elsewhere."""
    num, slots_bytes = len(layer_bytes), SLOTS * max(layer_bytes)
    for num_away in range(num + 1):
        away = spread(num, num_away)
        here = other_bytes + sum(layer_bytes) - sum(layer_bytes[i] for i in away)
        if here + (slots_bytes if away else 0) <= device_bytes:
            return away
    raise CapacityError(
        f"{device_bytes} bytes for weights",
        expected=f"at least {other_bytes + slots_bytes}: embedding, head, and {SLOTS} slots for layers",
        fix="allow more",
    )


def _load(
    folder: Path, spec: ModelSpec, away: frozenset[int], arena: Arena, progress: Progress | None
) -> tuple[dict[int, Layer], Weights]:
    """The layers that are here, and what is outside of layers."""
    checkpoint = open_checkpoint(folder, progress)
    layers: dict[int, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for part in each_part(spec):
        if part.layer in away:
            for name, _ in part.tensors:
                checkpoint.skip(name)
            continue
        if part.name == "head" and spec.tied:
            others["head"] = others["embed"]
            continue
        whole = joined(spec, part, checkpoint.get)
        kept = arena.take(*whole.shape).copy_(whole)
        (others if part.layer < 0 else layers.setdefault(part.layer, {}))[part.name] = kept
    checkpoint.check_all_read()
    return {i: Layer(**parts) for i, parts in layers.items()}, Weights(layers=[], **others)


def _views(slot: Tensor, shapes: Shapes) -> Layer:
    found, begin = {}, 0
    for name, shape in shapes:
        found[name] = slot[begin : begin + prod(shape)].view(shape)
        begin += prod(shape)
    return Layer(**found)
