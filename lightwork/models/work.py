"""Counted work of one forward pass over ragged chunks: operations and bytes, never seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, lru_cache

from lightwork.models.spec import ModelSpec
from lightwork.runtime.effects import DTYPE_BYTES, Work

FEW_ROWS = 32
"""Chunks of fewer rows read more KV bytes per operation than any machine balances; they are counted apart."""


def forward_work(
    spec: ModelSpec,
    chunks: Iterable[tuple[int, int]],
    num_scored: int,
    *,
    dtype: str,
    tp: int = 1,
    shared: Sequence[int] = (),
) -> tuple[Work, ...]:
    """Work of one of tp tensor-parallel ranks, all layers, for chunks (start, count) of different sequences.

    Linear layers, attention over (start + count) keys, the head for scored rows, and the elementwise rest.
    shared: of each chunk, its first keys that are read for another one anyway; () if none are.
    """
    chunks = [*chunks]
    rows = sum(count for _, count in chunks)
    return (
        products(spec, rows, spec.num_layers, dtype=dtype, tp=tp),
        *around_work(spec, chunks, dtype=dtype, tp=tp, shared=shared),
        head_work(spec, num_scored, dtype=dtype, tp=tp),
    )


def around_work(
    spec: ModelSpec,
    chunks: Sequence[tuple[int, int]],
    *,
    dtype: str,
    tp: int = 1,
    shared: Sequence[int] = (),
) -> tuple[Work, ...]:
    """What all layers do beside their products: attention, and the elementwise rest. shared: see
    `forward_work`."""
    rows = sum(count for _, count in chunks)
    attention = attention_work(spec, chunks, dtype=dtype, tp=tp, shared=shared)
    return (*attention, _elementwise(spec, rows, dtype, tp))


def products(spec: ModelSpec, rows: int, num_layers: int, *, dtype: str, tp: int = 1) -> Work:
    """Work of one of tp ranks for the matrix products of so many layers, each the mean of all."""
    linear, moved = (n * num_layers / spec.num_layers for n in _linear(spec, rows))
    return Work(
        kind="matmul",
        dtype=dtype,
        ops=2.0 * rows * linear / tp,
        bytes=moved * DTYPE_BYTES[dtype] / tp if rows else 0.0,
        rows=rows,
        launches=4 * num_layers,
    )


@lru_cache(maxsize=1 << 14)
def slice_work(
    spec: ModelSpec, start: int, count: int, *, back: bool, dtype: str, tp: int = 1
) -> tuple[Work, ...]:
    """Work of one of tp ranks for `count` tokens of training through one frozen layer, or back to its inputs
    alone, but for the products forward.

    Those are of the step: whoever passes a layer in it is a row of one product, also what is computed again
    to go back. Back there is a product the other way; attention has five where forward has two. What an
    adapter adds is not counted.
    """
    times = {"matmul": 1.0, "attention": 3.5, "vector": 3.0}
    if not back:
        times = {"matmul": 0.0, "attention": 1.0, "vector": 1.0}
    layer = replace(spec, num_layers=1, moe=frozenset(), windowed=frozenset())
    return tuple(
        replace(
            w,
            ops=w.ops * times[w.kind],
            bytes=w.bytes * times[w.kind],
            launches=(3 if back and w.kind != "matmul" else 1) * w.launches,
        )
        for w in forward_work(layer, [(start, count)], 0, dtype=dtype, tp=tp)
        if w.ops and times[w.kind]
    )


def attention_work(
    spec: ModelSpec,
    chunks: Iterable[tuple[int, int]],
    *,
    dtype: str,
    tp: int = 1,
    shared: Sequence[int] = (),
) -> tuple[Work, ...]:
    """Of all layers' attention over (start + count) keys: of chunks with few rows, and of others."""
    chunks = [*chunks]
    ops, keys_read = _keys(spec, chunks)
    for (start, count), keys in zip(chunks, shared, strict=False):
        keys_read[count >= FEW_ROWS] -= _shared_keys(spec, start, keys)
    return tuple(
        Work(
            kind="attention",
            dtype=dtype,
            ops=ops[long] * 4 * spec.num_heads * spec.head_size / tp,
            bytes=keys_read[long] * spec.kv_bytes_per_token(dtype) / spec.num_layers / tp,
            launches=spec.num_layers,
        )
        for long in (False, True)
        if ops[long]
    )


def product_work(spec: ModelSpec, rows: int, *, dtype: str, tp: int = 1) -> dict[str, tuple[Work, ...]]:
    """Of one layer's matrix products ("qkv", "out", "up", "down"), each with the elementwise work around it.

    An MLP is the mean of all layers'.
    """
    s, size = spec, DTYPE_BYTES[dtype]
    out = s.hidden_size * s.head_size * s.num_heads
    met, read = ((n / s.num_layers - s.attention_params) for n in _linear(s, rows))
    up = 2 / 3 if s.gated else 1 / 2
    params = {
        "qkv": (s.attention_params - out,) * 2,
        "out": (out, out),
        "up": (met * up, read * up),
        "down": (met * (1 - up), read * (1 - up)),
    }
    around = {
        name: [Work(kind="vector", dtype=dtype, ops=n * rows, bytes=n * rows * size, launches=launches)]
        for name, (n, launches) in _moved_per_row(s, tp).items()
    }
    return {
        name: (
            Work(kind="matmul", dtype=dtype, ops=2.0 * rows * used / tp, bytes=moved * size / tp, rows=rows),
            *around.get(name, ()),
        )
        for name, (used, moved) in params.items()
    }


def expert_work(spec: ModelSpec, rows: Sequence[int], *, dtype: str) -> Work:
    """Of some experts of one layer, by the rows that each computes; one that has none is not read."""
    computed, used = sum(rows), sum(1 for num in rows if num)
    params = spec.hidden_size * spec.ffn_size * (3 if spec.gated else 2)
    return Work(
        kind="matmul",
        dtype=dtype,
        ops=2.0 * computed * params,
        bytes=used * params * DTYPE_BYTES[dtype],
        rows=-(-computed // used) if used else 0,
        launches=2,
    )


def _keys(spec: ModelSpec, chunks: Iterable[tuple[int, int]]) -> tuple[list[float], list[float]]:
    """Rows times keys seen, and keys read, in all layers: of chunks with few rows, and others."""
    window = spec.sliding_window
    full, windowed = spec.num_layers - len(spec.windowed), len(spec.windowed)
    ops, keys_read = [0.0, 0.0], [0.0, 0.0]
    for start, count in chunks:
        if count == 1 and not windowed:  # a token being generated, as nearly all are
            ops[0] += full * (start + 1)
            keys_read[0] += full * (start + 1)
            continue
        long = count >= FEW_ROWS
        average, read = start + (count + 1) / 2, start + count
        ops[long] += count * (full * average + windowed * min(average, window or average))
        keys_read[long] += full * read + windowed * min(read, (window or read) + count)
    return ops, keys_read


def _shared_keys(spec: ModelSpec, start: int, shared: int) -> float:
    """Of a chunk's first `shared` keys, those that `_keys` counts as read, in all layers."""
    hidden = max(0, start - (spec.sliding_window or start))
    windowed = len(spec.windowed)
    return (spec.num_layers - windowed) * shared + windowed * max(0, shared - hidden)


@cache
def _linear(spec: ModelSpec, rows: int) -> tuple[float, float]:
    """Parameters that one row meets, and parameters that `rows` rows together read: an expert is read if
    any row
    takes it, with routes taken as independent and uniform."""
    attention = spec.num_layers * spec.attention_params
    if not spec.moe:
        every = attention + spec.mlp_params()
        return every, every
    touched = spec.num_experts * (1 - (1 - spec.experts_per_token / spec.num_experts) ** rows)
    return attention + spec.mlp_params(spec.experts_per_token), attention + spec.mlp_params(touched)


def _moved_per_row(spec: ModelSpec, tp: int) -> dict[str, tuple[float, int]]:
    """Numbers that the elementwise kernels around a layer's product move for a row, and how many those are.

    Around the first: norm and residual (read and write), rotation, and storing keys and values; around the
    MLP's: the same of the other norm, and activation.
    """
    norm = 5.0 * spec.hidden_size
    heads = 2 * (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_size / tp
    wide = 3 * spec.ffn_size * max(1, spec.experts_per_token) / tp
    return {"qkv": (norm + heads, 3), "up": (norm + wide, 2)}


def _elementwise(spec: ModelSpec, rows: int, dtype: str, tp: int) -> Work:
    parts = _moved_per_row(spec, tp).values()
    per_row = sum(numbers for numbers, _ in parts)
    return Work(
        kind="vector",
        dtype=dtype,
        ops=per_row * rows * spec.num_layers,
        bytes=per_row * rows * spec.num_layers * DTYPE_BYTES[dtype],
        launches=sum(launches for _, launches in parts) * spec.num_layers,
    )


def head_work(spec: ModelSpec, num_scored: int, *, dtype: str, tp: int = 1) -> Work:
    """Of scoring rows over the vocabulary."""
    table = spec.vocab_size * spec.hidden_size / tp
    scored = 2.0 * num_scored * table
    return Work(
        kind="matmul",
        dtype=dtype,
        ops=scored,
        bytes=table * DTYPE_BYTES[dtype] if num_scored else 0,
        rows=num_scored,
    )
