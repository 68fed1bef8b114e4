"""A checkpoint's matrices as the numbers or codes of a format.

Codes that a file stores are kept where the format has the same ones; all else is rounded to the format.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.kernels.cpu.formats import BF16, BF16_DOT, F16, MatrixFormat
from lightwork.kernels.cpu.pack import Coded, narrow, pack, quantise
from lightwork.models import import_models
from lightwork.models.checkpoint import Source
from lightwork.models.codes import Codes
from lightwork.models.parts import MATRICES, Named, Part, each_part
from lightwork.runtime.progress import Progress

if TYPE_CHECKING:
    from lightwork.models.packed import Layout

LARGEST = 65504.0
"""The largest float16, the type of scales."""


class Writer:
    """Fills the bytes of a layout from a checkpoint's tensors."""

    def __init__(
        self, layout: Layout, blob: NDArray[np.uint8], checkpoint: Source, progress: Progress | None
    ) -> None:
        self._layout = layout
        self._blob = blob
        self._checkpoint = checkpoint
        self._progress = progress
        self._done = 0

    def write(self) -> None:
        import_models()
        layout = self._layout
        for part in each_part(layout.spec):
            place = layout.place(part.layer, part.name)
            if part.name == "head" or part.name in MATRICES:
                self._matrices(place, part)
                continue
            tensors = [self._checkpoint.get(*named) for named in part.tensors]
            if part.name == "embed":
                self._put(place, _embedding(tensors[0], layout.embed_bytes))
            else:
                self._put(4 * place, np.concatenate([floats(tensor) for tensor in tensors]))
        self._checkpoint.check_all_read()

    def _matrices(self, first: int, part: Part) -> None:
        """Queries, keys and values are one matrix; gate, up and experts are matrices of their own."""
        form = self._layout.form
        alone = ([named] for named in part.tensors)
        for i, tensors in enumerate([list(part.tensors)] if part.name == "qkv" else alone):
            offset, blocks, _, block = self._layout.matrices[first + i]
            into = self._blob[offset : offset + blocks * block]
            whole = matrix(self._checkpoint, tensors, form, part.transposed)
            pack(whole, into, form, os.cpu_count() or 1)
            self._tell(into.nbytes)

    def _put(self, offset: int, values: NDArray[Any]) -> None:
        flat = values.reshape(-1).view(np.uint8)
        self._blob[offset : offset + flat.nbytes] = flat
        self._tell(flat.nbytes)

    def _tell(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress("convert", min(self._done, self._layout.nbytes), self._layout.nbytes)


def matrix(
    source: Source, tensors: Sequence[Named], form: MatrixFormat, transposed: bool
) -> NDArray[Any] | Coded:
    """One matrix of tensors with the same inputs, as `pack` takes it. transposed: stored input-major.

    Raises CheckpointError, also for numbers that no scale makes codes of.
    """
    if form.quantised:
        parts = [_coded(source, named, form, transposed) for named in tensors]
        return Coded(*(_stacked(arrays) for arrays in zip(*parts, strict=True)))
    return _stacked([_in_full(_tensor(source, named, transposed), form) for named in tensors])


def floats(tensor: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.float().numpy())


def _stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _tensor(source: Source, named: Named, transposed: bool) -> Any:
    tensor = source.get(*named)
    return tensor.T if transposed else tensor


def _in_full(tensor: Any, form: MatrixFormat) -> NDArray[Any]:
    """16-bit types as they are if they stay so, everything else in float32."""
    import torch

    if form.code in (BF16, BF16_DOT) and tensor.dtype == torch.bfloat16:
        return np.ascontiguousarray(tensor.view(torch.uint16).numpy())
    if form.code == F16:
        return np.ascontiguousarray(tensor.to(torch.float16).view(torch.uint16).numpy())
    wide = floats(tensor)
    return narrow(wide) if form.code in (BF16, BF16_DOT) else wide


def _coded(source: Source, named: Named, form: MatrixFormat, transposed: bool) -> Coded:
    """The codes that a matrix is stored in if the format has them, else the nearest to its values."""
    name, codes = named[0], source.codes(*named)
    if codes is None:
        values = floats(_tensor(source, named, transposed))
    else:
        _check_range(name, codes.scales, "copy it again")
        if _has(form, codes):
            return _as_stored(name, codes, form.group)
        values = codes.dequantised()
    _check_range(name, values, "--use Stored")
    return quantise(values, form, os.cpu_count() or 1)


def _has(form: MatrixFormat, codes: Codes) -> bool:
    """Whether each of these codes means in a format what it means here."""
    alike = form.four_bits == (codes.bits == 4) and codes.group % form.group == 0 and not form.table
    return alike and (form.affine or not codes.middles().any())


def _as_stored(name: str, codes: Codes, group: int) -> Coded:
    """The codes themselves; scales and offsets are rounded to float16."""
    middles = codes.middles()
    _check_range(name, middles, "copy it again")
    halves = [x.astype(np.float16).view(np.uint16) for x in (codes.scales, middles)]
    return Coded(codes.codes, *(np.repeat(x, codes.group // group, axis=1) for x in halves))


def _check_range(name: str, numbers: NDArray[Any], fix: str) -> None:
    low, high = float(numbers.min()), float(numbers.max())
    if not (low >= -LARGEST and high <= LARGEST):
        raise CheckpointError(
            f"{name} cannot be quantised: it holds {low if abs(low) > abs(high) else high}",
            expected=f"numbers of at most {LARGEST:.0f}",
            fix=fix,
        )


def _embedding(tensor: Any, nbytes: int) -> NDArray[Any]:
    import torch

    if nbytes == 4:
        return floats(tensor)
    return np.ascontiguousarray(tensor.view(torch.uint16).numpy())
