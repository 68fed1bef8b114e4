"""What the threads of a step share: sizes, settings and addresses of buffers, in one record.

Compiled functions take the record and open views on its buffers; a record is one pointer to them, where
tuples of arrays would be hundreds of arguments. Everything is a number of 64 bits.

R rows  N scored rows  S sequences  d hidden  H query heads  G key-value heads  D head size  F MLP width
V vocabulary  E experts  A rows times experts per row  P layers of the largest group
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.cpu.formats import BLOCK, PAGE

MODEL = (
    "layers num_layers matrices table",  # tables below; float32 [16]
    "weights vectors embed embed_half positions",  # bytes; float32; [V, d]; float32 [max_len, d] or 0
    "hidden heads kv_heads head_size padded_head vocab max_len",
    "experts experts_per_token normalise_gates layer_norm gated activation",
    "head norm norm_bias",  # a matrix; offsets in vectors
    "first_block last_block",  # what a call computes: 0 the embedding, then attention and MLP of each layer
    "format kernel f32_kernel affine group parts",  # of the matrices; for widened ones, or 0
    "kv_format kv_wide kv_narrow",  # of keys and values; kernels for 64 outputs and for 16
    "window",  # of the layers that have one
    "least_alike",  # chunks that sequences must share to be a group
    "probes num_probes",  # float32 [num_probes, d]: of negative tokens, -1 the first
    "num_groups group_starts",  # of layers: int64 [groups + 1], the first of each, and their number
)
BATCH = (
    "rows scored",  # R N
    "tokens row_positions slots seqs index ancestors windowed_ancestors",  # [R]: as Rows; int64, uint64
    "known tables table_width scored_rows",  # int64 [S]; int32 [S, table_width]; int64 [N]
    "cosines sines",  # float32 [positions, D / 2], or 0
    "runs run_table row_adapters",  # rows with an adapter: int64 [runs, 3]; int64 [R]: a table or 0
    "reduce_kernel add_kernel",  # float32, for 16 outputs and for 64
)
POOL = ("blocks keys values key_scales value_scales",)
SCRATCH = (
    # float32 [R, d], [P R, (H + 2 G) D], [P R, width], [A, width] twice
    "x qkv mixed wide gathered width",
    # Rows encoded for a product: [A or P R, parts, width], [.., width], [.., groups].
    "halves codes scales sums float_sums groups",
    "tiles widened",  # float32 [threads, 2, ROW_TILE, TILE_WIDTH], [threads, WIDENED_PANEL, BLOCK]
    "q chunk_scores part part_sums out out_sums tile_rows",  # float32 [threads, tile_rows, ...]
    "half_q half_scores q_scales weight_scales",  # the first two in 16 bits, and with bytes their scales
    "partials chunks",  # float32 [runs, chunks, tile_rows, padded_head + 2]
    "path_keys path_values path_key_scales path_value_scales",  # [threads, PATH_PAGES, G, ...]: as the pool's
    "path_tables path_begun",  # int32 [threads, CHUNK_PAGES]; int64 [threads, G]: whose known keys are there
    "plan windowed_plan",  # int64 [1 + tiles, PLAN_COLUMNS]
    "members row_order row_sums",  # int64 [S, MEMBER_COLUMNS]; int64 [R]; float32 [P R, H, 2]
    "expert_scores expert_of gate_of order starts expert_out",
    "reduced reduced_width",  # float32 [R, reduced_width]: inputs reduced to an adapter's ranks
    # int64: (0, R, 2 R .. P R), the starts of each layer's rows; (0, N), of the only expert's.
    "row_starts every_scored",
    "logits",  # float32 [N, V]
)
TEAM = ("threads control counters phases",)
FIELDS = [name for group in (MODEL, BATCH, POOL, SCRATCH, TEAM) for line in group for name in line.split()]
# Columns of a layer's table: matrices by number, WINDOW in tokens (0: none), FFN in numbers, and vectors by
# their offset in State.vectors; -1 where a layer has none.
(
    QKV, OUT, UP, DOWN, WINDOW, FFN, ROUTER, NORM1, NORM1_BIAS, QKV_BIAS, Q_NORM, K_NORM, OUT_BIAS, NORM2,
    NORM2_BIAS, UP_BIAS, DOWN_BIAS, LAYER_COLUMNS,
) = range(18)  # fmt: skip

OFFSET, BLOCKS, INPUTS, BLOCK_BYTES, MATRIX_COLUMNS = range(5)
"""Columns of a matrix: where it begins in weights, its blocks of 64 outputs, inputs, bytes of a block."""
DELTA_A, DELTA_B, DELTA_RANK, DELTA_REDUCED, DELTA_FIRST_BLOCK, DELTA_BLOCKS, DELTA_COLUMNS = range(7)
"""A line of an adapter's table: float32 [ranks / 16, inputs, 16]; float32 [blocks, rank, 64], scaled; rank, 0
if there is none; where its reduced inputs begin; the blocks of outputs that it adds to."""
RANK_BLOCK = 16
RUN_FIRST, RUN_ROWS, RUN_ADAPTER, RUN_COLUMNS = range(4)
"""Neighbouring rows of one adapter, which are reduced together."""
PRODUCTS_PER_LAYER, DELTAS_PER_PRODUCT = 4, 3
QKV_PRODUCT, OUT_PRODUCT, UP_PRODUCT, DOWN_PRODUCT = range(PRODUCTS_PER_LAYER)
"""The table has lines for each layer, product, and part of it (queries, keys, values; gate, up)."""
SEQ, FIRST_ROW, NUM_ROWS, FIRST_CHUNK, NUM_CHUNKS, UNITS_BEFORE, STAGE, HEADS, PATH, PLAN_COLUMNS = range(10)
"""Columns of a tile of attention, whose units are its chunks of keys for so many key-value heads. Rows are
counted in row_order. PATH: 0 unless a row's ancestors lie apart (paths.py), then the most keys of a row."""
ALONE, UNFINISHED, BEGUN = range(3)
"""Stages of a tile: all chunks of its rows, those that a group shares, those that follow them."""
ALIKE, FIRST_OF_GROUP, SAVED, MEMBER_COLUMNS = range(3, 7)
"""Columns of a sequence among the members of groups, after its first three: attention_plan.py."""
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

PHASES_PER_LAYER = 18
PATH_PAGES = 2
"""Pages on which the 64 nodes of a draft can lie."""
RUNS_PER_THREAD = 16
"""Attention is cut into more runs than threads, so that a thread that loses its core does not hold up all."""
CHUNK_PAGES = 4
CHUNK = PAGE * CHUNK_PAGES
MAX_TILE_ROWS = 64
"""Keys that attention goes over at once, and rows that do so together."""
ROW_TILE = 192
BLOCKS_TOGETHER = 4
TILE_WIDTH = BLOCK * BLOCKS_TOGETHER
TILE_BYTES = 4 * ROW_TILE * TILE_WIDTH
"""Of a product: rows for which a block of weights is read once, and blocks that are taken together."""
PICK_BLOCK = 256
"""Tokens whose chances are bounded before any is looked at (pick.py)."""
WIDENED_PANEL = 128
"""Inputs of a panel of weights that are widened once for all rows: 32 KiB, which fit a first-level cache."""
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
        self.address = int(self.record.ctypes.data)
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
