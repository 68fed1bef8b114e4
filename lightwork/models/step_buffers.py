"""The arrays that a compiled step works in, and the filling of those that say what its rows are.

R rows  N scored rows  d hidden  V vocabulary
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.cpu import formats
from lightwork.kernels.cpu.formats import MatrixFormat
from lightwork.kernels.cpu.state import (
    ALIKE,
    CACHE_LINE,
    CHUNK,
    CHUNK_PAGES,
    FIRST_OF_GROUP,
    MAX_TILE_ROWS,
    MEMBER_COLUMNS,
    PATH_PAGES,
    PLAN_COLUMNS,
    ROW_TILE,
    RUNS_PER_THREAD,
    SEQ,
    TILE_WIDTH,
    WIDENED_PANEL,
    State,
    zeros,
)
from lightwork.kernels.rows import Rows
from lightwork.models.spec import ModelSpec

FIRST_POSITIONS = 1024


class Buffers:
    """The arrays a step works in, as large as the largest step so far. threads: that compute one. together:
    layers of the largest group."""

    threads = together = 1

    def __init__(self, spec: ModelSpec, form: MatrixFormat, state: State) -> None:
        self._spec = spec
        self._form = form
        self._state = state
        self._sizes = (0, 0, 0, 0, 0, 0)
        self._positions = 0
        self._logits = zeros((0, spec.vocab_size))
        self._every_scored = np.zeros(2, np.int64)
        state.set(every_scored=self._every_scored)

    def logits(self, scored: int) -> NDArray[np.float32]:
        """Room for the logits of so many rows, [N, V]: the same with each call."""
        if scored > len(self._logits):
            self._logits = zeros((max(scored, 2 * len(self._logits)), self._spec.vocab_size))
        return self._logits[:scored]

    def fill(self, rows: Rows, logits: NDArray[np.float32] | None) -> None:
        """Copy a step's rows to where the threads read them. logits: where they will write; None, and they
        compute none."""
        num_rows, scored, seqs = len(rows.tokens), len(rows.scored), len(rows.known)
        need = (num_rows, scored, seqs, rows.tables.shape[1], self.threads, self.together)
        if any(n > h for n, h in zip(need, self._sizes, strict=True)):
            self._grow(need)
        position = int(rows.positions.max()) + 1
        if position > self._positions and self._spec.position == "rotary":
            self._grow_rope(position)
        arrays = self._state.arrays
        for name in ("tokens", "slots", "seqs", "index", "ancestors"):
            arrays[name][:num_rows] = getattr(rows, name)
        arrays["row_positions"][:num_rows] = rows.positions
        arrays["windowed_ancestors"][:num_rows] = rows.ancestors
        arrays["known"][:seqs] = rows.known
        arrays["tables"][:seqs, : rows.tables.shape[1]] = rows.tables
        arrays["tables"][:seqs, rows.tables.shape[1] :] = -1
        arrays["scored_rows"][:scored] = rows.scored
        if logits is not None:
            self._state.set(logits=logits)
        np.multiply(range(self._sizes[5] + 1), num_rows, out=arrays["row_starts"])
        self._every_scored[1] = scored if logits is not None else 0
        record = self._state.record
        record["rows"], record["scored"] = num_rows, scored

    def shared_keys(self, rows: Rows) -> NDArray[np.int64]:
        """Of each sequence, its first keys that the step just computed read for another one anyway, [S].

        rows: that it was filled with.
        """
        shared_S = np.zeros(len(rows.known), np.int64)
        if len(shared_S) < 2 or rows.tables.shape[1] <= CHUNK_PAGES:
            return shared_S
        members = self._state.arrays["members"][: rows.seqs[-1] - rows.seqs[0] + 1]
        later = members[members[:, FIRST_OF_GROUP] < np.arange(len(members))]
        shared_S[later[:, SEQ]] = CHUNK * later[:, ALIKE]
        return shared_S

    def _grow_rope(self, position: int) -> None:
        self._positions = min(self._spec.max_len, max(position, 2 * self._positions, FIRST_POSITIONS))
        frequencies = self._spec.rope.frequencies(self._spec.head_size)
        angles = np.arange(self._positions, dtype=np.float32)[:, None] * frequencies
        self._state.set(cosines=np.cos(angles), sines=np.sin(angles))

    def _grow(self, need: tuple[int, ...]) -> None:
        grown = tuple(h if n <= h else max(n, 2 * h) for n, h in zip(need, self._sizes, strict=True))
        rows, scored, seqs, pages, threads, together = grown
        rows = max(rows, scored)
        self._sizes = (rows, scored, seqs, pages, threads, together)
        self._state.set(
            **_batch_arrays(rows, scored, seqs, pages),
            **_row_arrays(self._spec, self._form, rows, together),
            **_thread_arrays(self._spec, threads, pages),
            plan=np.zeros((2 * rows + 1, PLAN_COLUMNS), np.int64),
            windowed_plan=np.zeros((2 * rows + 1, PLAN_COLUMNS), np.int64),
            members=np.zeros((seqs, MEMBER_COLUMNS), np.int64),
            row_order=np.zeros(rows, np.int64),
            row_sums=zeros((rows * together, self._spec.num_heads, 2)),
            row_starts=np.zeros(together + 1, np.int64),
        )


def _batch_arrays(rows: int, scored: int, seqs: int, pages: int) -> dict[str, Any]:
    names = ("tokens", "row_positions", "slots", "seqs", "index")
    return {
        **{name: np.zeros(rows, np.int64) for name in names},
        "ancestors": np.zeros(rows, np.uint64),
        "windowed_ancestors": np.zeros(rows, np.uint64),
        "known": np.zeros(seqs, np.int64),
        "tables": np.zeros((seqs, pages), np.int32),
        "table_width": pages,
        "scored_rows": np.zeros(scored, np.int64),
    }


def _row_arrays(spec: ModelSpec, form: MatrixFormat, rows: int, together: int) -> dict[str, Any]:
    """Buffers of rows between phases; encoded rows only as the format needs them."""
    assigned, of_group = rows * max(1, spec.experts_per_token), rows * together
    encoded = max(assigned, of_group)
    d, inside = spec.hidden_size, spec.num_heads * spec.head_size
    widest = max(d, inside, spec.ffn_size, spec.dense_ffn_size)
    # Rows lie a cache line further than whole pages apart, or those of one register would share a set of it.
    width = -(-widest // form.group) * form.group
    width = -(-width // CACHE_LINE) * CACHE_LINE + CACHE_LINE
    groups = -(-width // form.group)
    experts = assigned if spec.moe else 1
    wide = zeros((assigned, width))
    projected = inside + 2 * spec.num_kv_heads * spec.head_size
    shared = projected <= width and of_group <= assigned  # read before wide is written
    bytes_ = form.code in (formats.CODE8_DOT, formats.CODE4_DOT)
    sums = form.affine and form.code in (formats.CODE8, formats.CODE4)

    return {
        "x": zeros((rows, d)),
        "qkv": wide if shared else zeros((of_group, projected)),
        "mixed": zeros((of_group, width)),
        "wide": wide,
        "gathered": zeros((experts, width)),
        "width": width,
        "halves": zeros((encoded, form.parts, width) if form.code == formats.BF16_DOT else 1, np.uint16),
        "codes": zeros((encoded, width) if bytes_ else (1, 1), np.int8),
        "scales": zeros((encoded, groups)) if bytes_ else zeros(1),
        "sums": zeros((encoded, groups) if bytes_ else (1, 1), np.int32),
        "float_sums": zeros((encoded, groups)) if sums else zeros(1),
        "groups": groups,
        "expert_of": np.zeros(assigned, np.int64),
        "gate_of": zeros(assigned),
        "order": np.zeros(assigned, np.int64),
        "starts": np.zeros(spec.num_experts + 1, np.int64),
        "expert_out": zeros((experts, d)),
    }


def _thread_arrays(spec: ModelSpec, threads: int, pages: int) -> dict[str, Any]:
    """What each thread works in, and the partials of heads that are cut."""
    most = max(MAX_TILE_ROWS, spec.num_heads // spec.num_kv_heads)
    wide, chunks = padded(spec.head_size), -(-pages // CHUNK_PAGES)
    path = (PATH_PAGES, spec.num_kv_heads)

    def floats(*size: int) -> NDArray[np.float32]:
        return zeros((threads, *size))

    return {
        "tiles": floats(2, ROW_TILE, TILE_WIDTH),
        "widened": floats(WIDENED_PANEL, formats.BLOCK),
        "q": floats(most, wide),
        "chunk_scores": floats(most, CHUNK),
        "half_q": zeros((threads, most, wide), np.uint16),
        "half_scores": zeros((threads, most, CHUNK), np.uint16),
        "q_scales": floats(most),
        "weight_scales": floats(most),
        "part": floats(most, wide),
        "part_sums": floats(most, 2),
        "out": floats(most, wide),
        "out_sums": floats(most, 2),
        "tile_rows": most,
        # In bytes the most that there can be: those of the pool may be of smaller numbers.
        "path_keys": floats(*path, spec.head_size * formats.PAGE),
        "path_values": floats(*path, wide * formats.PAGE),
        "path_key_scales": floats(*path, formats.PAGE),
        "path_value_scales": floats(*path, formats.PAGE),
        "path_tables": np.zeros((threads, CHUNK_PAGES), np.int32),
        "path_begun": np.zeros((threads, spec.num_kv_heads), np.int64),
        "partials": np.empty((threads * RUNS_PER_THREAD, chunks, most, wide + 2), np.float32),
        "chunks": chunks,
        "expert_scores": floats(max(1, spec.num_experts)),
    }


def padded(head_size: int) -> int:
    """Of a head's values, to whole registers."""
    return -(-head_size // 16) * 16
