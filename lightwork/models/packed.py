"""A model's weights in one block of bytes, in the order and format that the compiled step reads them.

Made once from a checkpoint and kept as a file that later starts map into memory, so that starting is fast
and several processes share one copy. Tiny models are made anew each time.

d hidden  H query heads  G key-value heads  D head size  F MLP width  V vocabulary
"""

from __future__ import annotations

import hashlib
import mmap
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.home import home, keep
from lightwork.kernels.cpu import formats, state
from lightwork.kernels.cpu.formats import MatrixFormat
from lightwork.kernels.cpu.isa import Isa, host
from lightwork.kernels.cpu.state import zeros
from lightwork.models.checkpoint import Source, open_checkpoint
from lightwork.models.precisions import Grouping, Numbers, Precision
from lightwork.models.spec import ModelSpec
from lightwork.runtime.progress import Progress

KEPT_BYTES = 1 << 20
"""Models of fewer bytes are packed at each start: they are those of tests."""
LAYOUT_VERSION = 3
ALIGNMENT = 64
LARGEST_GROUP = 128
"""Inputs that share a scale. A larger group of a checkpoint becomes several with the same scale: the kernel's
panels of inputs are whole groups, and groups that are whole rows differ from matrix to matrix."""
EMBED_HALF = {"float32": -1, "bfloat16": 0, "float16": 1}
HUGE_PAGES, POPULATE_READ = 14, 22
"""Advice to Linux about mapped memory, by the numbers of its madvise."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the forward whose weights lie together: bytes [begin, end). matrices: their numbers.

    columns: of the layer's line in the table of layers, those that say where a vector lies.
    """

    begin: int
    end: int
    matrices: tuple[int, ...]
    layer: int = -1
    columns: tuple[int, ...] = ()


@dataclass(slots=True)
class Layout:
    """Where everything lies. layers, matrices: as the record of state.py has them; qkv of all layers come
    first, so that those of a group of layers are neighbours, and are multiplied as experts are.

    blocks: in the order of the forward: the embedding, attention and MLP of each layer, norm and head.
    embed_half: the embedding is float32 (-1), bfloat16 (0) or float16 (1). embed, head, positions, norm,
    norm_bias: an offset in bytes, a matrix, and offsets in floats (-1: none).
    """

    spec: ModelSpec
    form: MatrixFormat
    embed_half: int
    nbytes: int = 0
    layers: NDArray[np.int64] = field(init=False)
    matrices: list[tuple[int, int, int, int]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    embed: int = 0
    positions: int = -1
    head: int = 0
    norm: int = 0
    norm_bias: int = -1

    @property
    def embed_bytes(self) -> int:
        """Of one number of the embedding."""
        return 4 if self.embed_half < 0 else 2

    def __post_init__(self) -> None:
        spec, d = self.spec, self.spec.hidden_size
        self.embed = self._take(spec.vocab_size * d * self.embed_bytes)
        if spec.position == "learned":
            self.positions = self._floats(spec.max_len * d)
        self._end_block()
        self.matrices += [(0, 0, 0, 0)] * spec.num_layers
        self.layers = np.full((spec.num_layers, state.LAYER_COLUMNS), -1, np.int64)
        for number in range(spec.num_layers):
            self._attention(self.layers[number], number)
            self._mlp(self.layers[number], number)
        self.norm = self._floats(d)
        if spec.norm == "layer":
            self.norm_bias = self._floats(d)
        self.head = self._matrices(1, spec.vocab_size, d)
        self._end_block((self.head,))

    def place(self, layer: int, name: str) -> int:
        """Of a weight, named as in parts.Part: the number of a matrix, else an offset."""
        if layer < 0:
            return int(getattr(self, name))
        return int(self.layers[layer][getattr(state, name.upper())])

    def _attention(self, at: NDArray[np.int64], number: int) -> None:
        spec, d, size = self.spec, self.spec.hidden_size, self.spec.head_size
        width = (spec.num_heads + 2 * spec.num_kv_heads) * size
        at[state.WINDOW] = spec.window(number) or 0
        optional = {
            state.NORM1: d,
            state.NORM1_BIAS: d if spec.norm == "layer" else 0,
            state.QKV_BIAS: width if spec.qkv_bias else 0,
            state.Q_NORM: size if spec.qk_norm else 0,
            state.K_NORM: size if spec.qk_norm else 0,
            state.OUT_BIAS: d if spec.out_bias else 0,
        }
        at[state.QKV] = number
        self.matrices[number] = self._place(width, d)
        at[state.OUT] = self._matrices(1, d, spec.num_heads * size)
        self._end_block((number, int(at[state.OUT])), number, self._vectors(at, optional))

    def _mlp(self, at: NDArray[np.int64], number: int) -> None:
        spec, d = self.spec, self.spec.hidden_size
        experts = spec.num_experts if number in spec.moe else 1
        ffn = spec.ffn_size if number in spec.moe else spec.dense_ffn_size or spec.ffn_size
        at[state.FFN] = ffn
        optional = {
            state.NORM2: d,
            state.NORM2_BIAS: d if spec.norm == "layer" else 0,
            state.UP_BIAS: ffn * (2 if spec.gated else 1) if spec.mlp_bias else 0,
            state.DOWN_BIAS: d if spec.mlp_bias else 0,
            state.ROUTER: experts * d if number in spec.moe else 0,
        }
        at[state.UP] = self._matrices(experts * (2 if spec.gated else 1), ffn, d)
        at[state.DOWN] = self._matrices(experts, d, ffn)
        self._end_block((*range(at[state.UP], len(self.matrices)),), number, self._vectors(at, optional))

    def _vectors(self, at: NDArray[np.int64], floats: Mapping[int, int]) -> tuple[int, ...]:
        """Places for vectors, by column; returns the columns of those that have numbers."""
        columns = tuple(column for column, count in floats.items() if count)
        for column in columns:
            at[column] = self._floats(floats[column])
        return columns

    def _end_block(
        self, matrices: tuple[int, ...] = (), layer: int = -1, columns: tuple[int, ...] = ()
    ) -> None:
        """What was laid out since the last block ended is one."""
        begin = self.blocks[-1].end if self.blocks else 0
        self.blocks.append(Block(begin, self.nbytes, matrices, layer, columns))

    def _matrices(self, count: int, outputs: int, inputs: int) -> int:
        """Places for equal matrices; returns the number of the first."""
        first = len(self.matrices)
        self.matrices += [self._place(outputs, inputs) for _ in range(count)]
        return first

    def _place(self, outputs: int, inputs: int) -> tuple[int, int, int, int]:
        block = self.form.block_bytes(inputs)
        blocks = self.form.nbytes(outputs, inputs) // block
        return self._take(blocks * block), blocks, self.form.padded(inputs), block

    def _floats(self, count: int) -> int:
        return self._take(4 * count) // 4

    def _take(self, nbytes: int) -> int:
        at = self.nbytes
        self.nbytes += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return at


def read_layout(folder: Path, spec: ModelSpec, precision: Precision) -> tuple[Layout, Numbers, Source]:
    """How a checkpoint's weights are packed, in which numbers, and the checkpoint."""
    checkpoint = open_checkpoint(folder)
    stored = checkpoint.stored()
    numbers = precision.numbers(stored, _grouping(spec, checkpoint))
    return Layout(spec, _for_host(numbers.matrices, host()), EMBED_HALF[stored]), numbers, checkpoint


def _for_host(form: MatrixFormat, isa: Isa) -> MatrixFormat:
    """A format with the same numbers that this processor multiplies faster.

    bfloat16 times float32 is the sum of three products of bfloat16, which matrix registers do as fast as
    vectors do half of one.
    """
    return (
        replace(form, code=formats.BF16_DOT, parts=formats.PARTS)
        if form.code == formats.BF16 and isa.matrix
        else form
    )


def _grouping(spec: ModelSpec, checkpoint: Source) -> Grouping | None:
    """How the checkpoint's matrices are quantised, read off the first."""
    if spec.family == "gpt2":
        return None
    shape = (spec.hidden_size, spec.num_heads * spec.head_size)
    codes = checkpoint.codes("model.layers.0.self_attn.o_proj.weight", shape)
    if codes is None:
        return None
    return Grouping(codes.bits, gcd(codes.group, LARGEST_GROUP), bool(codes.middles().any()))


def packed_bytes(
    layout: Layout, checkpoint: Source, progress: Progress | None = None, *, read: bool = True
) -> NDArray[np.uint8]:
    """The bytes of a layout, read-only: mapped from a file made earlier, or made now.

    A file made from an older version of the checkpoint is not used. read=False: not all of it is brought
    into memory now, but what is looked at. Raises CheckpointError; MissingExtraError without torch, if the
    checkpoint has to be read.
    """
    if layout.nbytes < KEPT_BYTES:
        return _in_memory(layout, checkpoint, progress)
    try:
        kept = packed_file(layout, checkpoint, progress)
    except OSError as error:
        warnings.warn(
            f"packed weights cannot be kept in {home() / 'packed'}: {error.strerror}. Every start will "
            "convert them; set LIGHTWORK_HOME to a folder with room",
            stacklevel=2,
        )
        return _in_memory(layout, checkpoint, progress)
    with kept.open("rb") as file:
        mapped = _map(file.fileno(), layout.nbytes, mmap.PROT_READ)
    if read:
        _advise(mapped, POPULATE_READ)
    return np.frombuffer(mapped, np.uint8)


def packed_file(layout: Layout, checkpoint: Source, progress: Progress | None = None) -> Path:
    """The file of a layout's bytes, made now if there is none of this version of the checkpoint.

    Raises OSError if it cannot be kept, and as `packed_bytes`.
    """
    kept = kept_as(LAYOUT_VERSION, checkpoint, layout.spec, layout.form, layout.embed_half)
    if not kept.is_file() or kept.stat().st_size != layout.nbytes:
        _write_file(kept, layout, checkpoint, progress)
    return kept


def room(nbytes: int) -> NDArray[np.uint8]:
    """Memory for weights that are copied, in huge pages."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE)
    _advise(memory, HUGE_PAGES)
    return np.frombuffer(memory, np.uint8)


def _map(file: int, nbytes: int, protection: int) -> mmap.mmap:
    """A file in huge pages, where the system keeps files so: finding small ones costs a quarter of a step."""
    mapped = mmap.mmap(file, nbytes, prot=protection)
    _advise(mapped, HUGE_PAGES)
    return mapped


def _advise(mapped: mmap.mmap, advice: int) -> None:
    with suppress(OSError):  # a system without it
        mapped.madvise(advice)


def _in_memory(layout: Layout, checkpoint: Source, progress: Progress | None) -> NDArray[np.uint8]:
    blob = zeros(layout.nbytes, np.uint8)
    _fill(layout, blob, checkpoint, progress)
    blob.flags.writeable = False
    return blob


def _fill(layout: Layout, blob: NDArray[np.uint8], checkpoint: Source, progress: Progress | None) -> None:
    from lightwork.models.convert import Writer  # stands on torch and numba, which later starts do without

    Writer(layout, blob, checkpoint, progress).write()


def _write_file(kept: Path, layout: Layout, checkpoint: Source, progress: Progress | None) -> None:
    def write(part: Path) -> None:
        with part.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, layout.nbytes)
            # Left to the collector: closed after an error, while arrays still look at it, it would hide that.
            mapped = _map(file.fileno(), layout.nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
        _fill(layout, np.frombuffer(mapped, np.uint8), checkpoint, progress)
        mapped.flush()

    keep(kept, write)


def kept_as(version: int, checkpoint: Source, *what: object) -> Path:
    """Where something that is made of a checkpoint is kept: elsewhere for another version of either."""
    files = checkpoint.files
    seen = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files)]
    folder = [str(f.resolve().parent) for f in files][:1]
    text = repr((version, folder, seen, *what))
    return home() / "packed" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.bin"


def not_kept(nbytes: int, error: OSError) -> CheckpointError:
    """Weights that are read again for each pass have no place."""
    return CheckpointError(
        f"weights that are streamed must be kept in {home() / 'packed'}: {error.strerror}",
        expected=f"{nbytes} bytes of room",
        fix="set LIGHTWORK_HOME to a folder with room",
    )
