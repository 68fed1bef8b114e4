"""What the threads of a step share: sizes, settings and addresses of buffers, in one record.

Compiled functions take the record and open views on its buffers; a record is one pointer to them, where
tuples of arrays would be hundreds of arguments. Everything is a number of 64 bits.

R rows  N scored rows  S sequences  d hidden  H query heads  G key-value heads  D head size  F MLP width
V vocabulary  E experts  A rows times experts per row
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.cpu.compiled import intrinsic, types
from lightwork.kernels.cpu.vectors import I64, Builder, Value

MODEL = (
    "layers num_layers matrices table",  # tables below; float32 [16]
    "weights vectors embed embed_half positions",  # bytes; float32; [V, d]; float32 [max_len, d] or 0
    "hidden heads kv_heads head_size padded_head vocab",
    "experts experts_per_token normalise_gates layer_norm gated activation",
    "head norm norm_bias",  # a matrix; offsets in vectors
    "format kernel f32_kernel affine group parts",  # of the matrices; for widened ones, or 0
    "kv_format kv_wide kv_narrow",  # of keys and values; kernels for 64 outputs and for 16
    "window",  # of the layers that have one
)
BATCH = (
    "rows scored",  # R N
    "tokens row_positions slots seqs index ancestors windowed_ancestors",  # [R]: as Rows; int64, uint64
    "known tables table_width scored_rows",  # int64 [S]; int32 [S, table_width]; int64 [N]
    "cosines sines",  # float32 [positions, D / 2], or 0
)
POOL = ("keys values key_scales value_scales",)
SCRATCH = (
    "x qkv mixed wide gathered width",  # float32 [R, d], [R, (H + 2 G) D], [R, width], [A, width] twice
    # Rows encoded for a product: [A, parts, width], [A, width], [A, groups].
    "halves codes scales sums float_sums groups",
    "tiles widened",  # float32 [threads, 2, ROW_TILE, TILE_WIDTH], [threads, WIDENED_PANEL, BLOCK]
    "q chunk_scores part part_sums out out_sums tile_rows",  # float32 [threads, tile_rows, ...]
    "half_q half_scores",  # the first two in bfloat16
    "partials chunks",  # float32 [runs, chunks, tile_rows, padded_head + 2]
    "plan windowed_plan",  # int64 [tiles + 1, 6]
    "expert_scores expert_of gate_of order starts expert_out",
    "all_rows every_scored",  # int64 [2]: (0, R) and (0, N), the starts of one expert's rows
    "logits",  # float32 [N, V]
)
TEAM = ("threads control counters phases",)
FIELDS = [name for group in (MODEL, BATCH, POOL, SCRATCH, TEAM) for line in group for name in line.split()]
CACHE_LINE = 64
RECORD = np.dtype([*((name, np.int64) for name in FIELDS), ("eps", np.float64)])


def zeros(shape: int | tuple[int, ...], kind: Any = np.float32) -> NDArray[Any]:
    """Zeros that begin where a cache line begins: a vector across two lines takes two loads."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    room = np.zeros(size + CACHE_LINE, np.uint8)
    first = -room.ctypes.data % CACHE_LINE
    made: NDArray[Any] = room[first : first + size].view(kind).reshape(shape)
    return made


class State:
    """The record, and the arrays whose addresses are in it."""

    def __init__(self) -> None:
        self.record: NDArray[Any] = np.zeros(1, RECORD)
        self.arrays: dict[str, NDArray[Any]] = {}

    def set(self, **values: NDArray[Any] | float) -> None:
        """Numbers are kept as they are; of an array, the address, and the array alive."""
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous, name
                self.arrays[name] = value
                self.record[name] = value.ctypes.data
            else:
                self.record[name] = value


def _view(kind: Any, name: str) -> Any:
    """An intrinsic: (address, count) -> array of `kind`, one-dimensional, owned by nobody."""

    @intrinsic
    def view(typing: Any, address: Any, count: Any) -> Any:
        array = types.Array(kind, 1, "C")

        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            made = context.make_array(array)(context, b)
            size = context.get_abi_sizeof(context.get_value_type(kind))
            context.populate_array(
                made,
                data=b.inttoptr(args[0], made.data.type),
                shape=[args[1]],
                strides=[I64(size)],
                itemsize=I64(size),
                meminfo=None,
            )
            return made._getvalue()

        return array(types.int64, types.int64), generate

    view.__doc__ = f"{name} [count] at an address."
    return view


def _element(kind: Any, name: str) -> Any:
    """An intrinsic: (address, i) -> the i-th number there."""

    @intrinsic
    def element(typing: Any, address: Any, i: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, args: Sequence[Value]) -> Value:
            pointer = b.inttoptr(args[0], context.get_value_type(types.CPointer(kind)))
            return b.load(b.gep(pointer, [args[1]]))

        return kind(types.int64, types.int64), generate

    element.__doc__ = f"The i-th {name} at an address."
    return element


floats, shorts, signed_bytes = (
    _view(types.float32, "float32"),
    _view(types.uint16, "uint16"),
    _view(types.int8, "int8"),
)
ints, int32s = _view(types.int64, "int64"), _view(types.int32, "int32")
int_at, bits_at = _element(types.int64, "int64"), _element(types.uint64, "uint64")
