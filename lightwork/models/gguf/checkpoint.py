"""The tensors of a GGUF file under their Hugging Face names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import CheckpointError
from lightwork.models.checkpoint import STORED, Reading, misshapen
from lightwork.models.codes import Codes
from lightwork.models.gguf.container import Container, Place
from lightwork.models.gguf.shape import ROPE_FACTORS, gguf_name, row_order, spec_of
from lightwork.runtime.progress import Progress

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What torch calls the formats without blocks."""
ROTATED = (".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias")


class GGUFCheckpoint:
    """A file's tensors, read from the mapped file when asked for."""

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self._file = Container(path)
        self._spec = spec_of(self._file)
        self._interleaved = self._file.text("general.architecture") == "llama"
        self.total_bytes = sum(p.nbytes for p in self._file.tensors.values())
        self._reading = Reading(self.total_bytes, progress)

    @property
    def files(self) -> list[Path]:
        return [self._file.path]

    def stored(self) -> str:
        """The type that the embedding is read in; float32 if it is quantised."""
        place = self._file.tensors["token_embd.weight"]
        return STORED.get(place.format.name, "float32")

    def check_all_read(self) -> None:
        """Raises CheckpointError if the file holds weights that the model has no place for."""
        left = sorted(self._file.tensors.keys() - self._reading.names - {ROPE_FACTORS})
        if left:
            raise CheckpointError(
                f"{self._file.path} holds {len(left)} tensors that its model has no place for: {left[0]}",
                expected=f"the tensors of a {self._spec.family} model and no others",
                fix="another file of this model",
            )

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor by name, float32 if it is quantised. Raises CheckpointError: missing or misshapen."""
        place = self._place(name, shape)
        if place.format.decode is not None:
            return torch.from_numpy(self._decoded(name, place).dequantised())
        tensor = torch.from_numpy(self._file.bytes_of(place)).view(PLAIN[place.format.name]).view(shape)
        return tensor[torch.from_numpy(self._order(place))] if self._is_rotated(name) else tensor

    def skip(self, name: str) -> None:
        """A tensor that is not wanted here."""
        self._reading.names.add(gguf_name(name)[0])

    def codes(self, name: str, shape: tuple[int, ...]) -> Codes | None:
        """A matrix in quantised form, or None if the file holds it in full."""
        place = self._place(name, shape)
        return None if place.format.decode is None else self._decoded(name, place)

    def _decoded(self, name: str, place: Place) -> Codes:
        assert place.format.decode is not None
        blocks = self._file.bytes_of(place).reshape(place.shape[0], -1, place.format.block_bytes)
        codes = place.format.decode(blocks)
        return codes.rows(self._order(place)) if self._is_rotated(name) else codes

    def _place(self, name: str, shape: tuple[int, ...]) -> Place:
        """Where a tensor, or an expert's share of one, lies."""
        stored, expert = gguf_name(name)
        place = self._file.tensors.get(stored)
        if place is None:
            raise CheckpointError(
                f"{self._file.path} has no tensor {stored}",
                expected=f"all tensors of a {self._spec.family} model of {self._spec.num_layers} layers",
                fix="another file of this model",
            )
        if expert is not None:
            if len(place.shape) != 3 or expert >= place.shape[0]:
                raise misshapen(stored, place.shape, (self._spec.num_experts, *shape), "the file's metadata")
            part = Place(format=place.format, shape=place.shape[1:], start=place.start)
            place = Place(format=part.format, shape=part.shape, start=part.start + expert * part.nbytes)
        if place.shape != shape:
            raise misshapen(stored, place.shape, shape, "the file's metadata")
        self._reading.add(stored, place.nbytes)
        return place

    def _is_rotated(self, name: str) -> bool:
        return self._interleaved and name.endswith(ROTATED)

    def _order(self, place: Place) -> NDArray[np.intp]:
        return row_order(place.shape[0], self._spec.head_size)
