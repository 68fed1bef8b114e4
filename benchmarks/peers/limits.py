"""The machine's own limit of single-stream decoding: bytes of one step over the bandwidth of reading them."""

from __future__ import annotations

import time

import numpy as np

from lightwork.cluster.probe.loops import read, require_fast_regions
from peers.shapes import Shape

BYTES_PER_WEIGHT = {"f32": 4.0, "bf16": 2.0, "8bit": 34 / 32, "4bit": 18 / 32}
"""The quantised ones with a two-byte scale for 32 weights."""


def step_bytes(shape: Shape, weights: str, context: int) -> int:
    """Bytes that a step of one sequence reads: every matrix, and the keys and values of context tokens."""
    kv = shape.kv_per_token * (4 if weights == "f32" else 2)
    return round(shape.step_weights * BYTES_PER_WEIGHT[weights]) + kv * context


def read_bandwidth(nbytes: int, threads: int, seconds: float = 0.2) -> float:
    """Bytes per second of reading the same nbytes again and again: in a cache if they fit in one."""
    require_fast_regions()
    data = np.arange(nbytes // 8, dtype=np.int64)
    read(data, 1, threads)
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        read(data, 2, threads)
        best = max(best, 2 * data.nbytes / (time.perf_counter() - begin))
    return best
