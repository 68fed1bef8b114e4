"""Several checkpoints of one shape, a few of whose weights are in the memory that steps compute from.

On a CPU the packed bytes of all are files that are mapped, so what host memory holds of them is the system's
choice, and an arena holds those of the residents; on a torch device all are in host memory. An item is named
by its checkpoint; "" is the model they are opened beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.models.packed import packed_bytes, read_layout, room
from lightwork.models.spec import ModelSpec, read_spec

if TYPE_CHECKING:
    from lightwork.models.compiled import CompiledModel
    from lightwork.models.model import Model
    from lightwork.models.precisions import Precision
    from lightwork.models.weights import Weights
    from lightwork.runtime.progress import Progress

PIECE_BYTES = 1 << 30
"""Copied in one call. What could stay in a cache is copied at half the speed: first it is read there."""


class ExpertWeights(Protocol):
    """Where weights are copied to. sizes: bytes of each one's."""

    @property
    def sizes(self) -> Mapping[str, int]: ...

    def make_room(self, num_slots: int) -> int:
        """Allocate slots of the largest size; returns the bytes of all of them."""
        ...

    def pieces(self, name: str, slot: int) -> Iterator[Callable[[], object]]:
        """What to call to copy an expert into a slot."""
        ...

    def compute_from(self, slot: int) -> None:
        """The next steps are of what this slot holds."""
        ...


class PackedExperts:
    """Of the compiled step: an expert is one block of bytes, a switch sets where the step looks for it."""

    def __init__(
        self,
        model: CompiledModel,
        folders: Mapping[str, Path],
        precision: Precision,
        progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._packed = {"": model.weights}
        for name, folder in folders.items():
            self._packed[name] = _packed(model, name, folder, precision, progress)
        self._arena: NDArray[np.uint8] = model.weights[:0]

    @property
    def sizes(self) -> dict[str, int]:
        return {name: packed.nbytes for name, packed in self._packed.items()}

    def make_room(self, num_slots: int) -> int:
        self._arena = room(num_slots * self._model.layout.nbytes).reshape(num_slots, -1)
        return self._arena.nbytes

    def pieces(self, name: str, slot: int) -> Iterator[Callable[[], object]]:
        source, target = self._packed[name], self._arena[slot]
        for at in range(0, len(source), PIECE_BYTES):
            yield partial(np.copyto, target[at : at + PIECE_BYTES], source[at : at + PIECE_BYTES])

    def compute_from(self, slot: int) -> None:
        self._model.compute_from(self._arena[slot])


def _packed(
    model: CompiledModel, name: str, folder: Path, precision: Precision, progress: Progress | None
) -> NDArray[np.uint8]:
    _check_shape(model.spec, name, folder)
    layout, _, checkpoint = read_layout(folder, read_spec(folder), precision)
    ours = model.layout
    if (layout.form, layout.embed_half, layout.nbytes) != (ours.form, ours.embed_half, ours.nbytes):
        raise _other(name, f"is stored as {checkpoint.stored()}, in {layout.nbytes} bytes")
    return packed_bytes(layout, checkpoint, progress, read=False)


class TorchExperts:
    """Of the torch forward: an expert is its tensors, a switch takes those of another slot.

    folders: of all, the model's own as "".
    """

    def __init__(self, model: Model, folders: Mapping[str, Path], progress: Progress | None = None) -> None:
        from lightwork.models.model import open_model

        self._model = model
        self._weights: dict[str, Weights] = {}
        self._slots: list[Weights] = []
        dtype = str(model.dtype).removeprefix("torch.")
        for name, folder in folders.items():
            _check_shape(model.spec, name, folder)
            opened = open_model(folder, dtype=dtype, device="cpu", progress=progress)
            self._weights[name] = opened.weights

    @property
    def sizes(self) -> dict[str, int]:
        return {name: weights.nbytes for name, weights in self._weights.items()}

    def make_room(self, num_slots: int) -> int:
        """The model's own weights, until now beside the others, become the first slot."""
        self._slots = [self._model.weights, *(deepcopy(self._model.weights) for _ in range(num_slots - 1))]
        return sum(slot.nbytes for slot in self._slots)

    def pieces(self, name: str, slot: int) -> Iterator[Callable[[], object]]:
        for target, source in zip(self._slots[slot].tensors(), self._weights[name].tensors(), strict=True):
            yield partial(target.copy_, source)

    def compute_from(self, slot: int) -> None:
        self._model.weights = self._slots[slot]


def _check_shape(spec: ModelSpec, name: str, folder: Path) -> None:
    if replace(read_spec(folder), name=spec.name) != spec:
        raise _other(name, "has another config.json")


def _other(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"the expert {name!r} {what}",
        expected="the shape and type of the model it is served beside",
        fix="leave it out, or convert it",
    )
