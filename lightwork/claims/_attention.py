"""The compiled attention alone, beside a memory probe and torch, on the shapes of the kernel study.

B sequences  G key-value heads  D head size
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from statistics import median

import numpy as np
import torch

from lightwork.cluster.probe.loops import sum_without_lock
from lightwork.kernels.attention import paged_attention, plan_groups
from lightwork.kernels.cpu.formats import BF16_DOT, F32, INT8_DOT, PAGE, MatrixFormat
from lightwork.kernels.cpu.pack import narrow
from lightwork.kernels.rows import Rows
from lightwork.models import resolve
from lightwork.models.compiled import CompiledKV, CompiledModel
from lightwork.models.packed import Layout
from lightwork.models.precisions import Numbers
from lightwork.models.spec import ModelSpec
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import WallClock

ROUNDS, CALLS = 15, 5
PROBE_BYTES = 1 << 28
NEVER = 1 << 30
"""Chunks that no sequences share."""
FORMATS = {"float32": (F32, 4.0), "bfloat16": (BF16_DOT, 2.0), "int8": (INT8_DOT, 1.0)}
"""Bytes of one number of a key."""


@dataclass(frozen=True, slots=True)
class Decode:
    """One query row per sequence. share: query heads of a key-value head. shared: first tokens of all
    sequences' contexts that are the same ones, whole pages."""

    seqs: int
    kv_heads: int
    share: int
    size: int
    context: int
    shared: int = 0

    def __str__(self) -> str:
        return f"B{self.seqs} kv{self.kv_heads} G{self.share} d{self.size} ctx{self.context}"

    @property
    def spec(self) -> ModelSpec:
        """A model of one layer that is little but its attention."""
        return ModelSpec(
            family="llama",
            vocab_size=64,
            hidden_size=64,
            num_layers=1,
            num_heads=self.kv_heads * self.share,
            num_kv_heads=self.kv_heads,
            head_size=self.size,
            ffn_size=64,
            max_len=self.context,
        )

    def rows(self, seed: int) -> Rows:
        """The last token of every sequence; blocks lie in random order."""
        last, pages = self.context - 1, -(-self.context // PAGE)
        order = np.random.default_rng(seed).permutation(self.seqs * pages).astype(np.int32)
        tables = order.reshape(self.seqs, pages)
        tables[:, : self.shared // PAGE] = tables[0, : self.shared // PAGE]
        at = np.full(self.seqs, last)
        return Rows(
            tokens=np.zeros(self.seqs, np.int64),
            positions=at,
            slots=tables[:, -1].astype(np.int64) * PAGE + last % PAGE,
            seqs=np.arange(self.seqs, dtype=np.int32),
            index=at,
            ancestors=np.zeros(self.seqs, np.uint64),
            known=at + 1,
            tables=tables,
            scored=np.zeros(0, np.int64),
        )


SHAPES = (Decode(1, 8, 4, 128, 8192), Decode(8, 8, 1, 64, 2000), Decode(4, 8, 4, 64, 4096))


@dataclass(frozen=True, slots=True)
class _Cell:
    """attend: attention of one shape and format, over num_bytes of keys and values."""

    name: str
    model: CompiledModel
    attend: Callable[[], object]
    num_bytes: float

    def share(self, probe: _Probe) -> float:
        """Of the probe's bytes per second, side by side once."""
        # Enough repeats that neither is over before the other core has woken up.
        repeats = max(1, int(PROBE_BYTES / 4 / self.num_bytes))
        ours_s = _seconds(lambda: [self.attend() for _ in range(repeats)])
        return self.num_bytes * repeats / ours_s / (PROBE_BYTES / _seconds(probe))


def of_probe(seed: int) -> dict[str, float]:
    """Of every shape and format, bytes of keys and values per second over a streaming read of memory: the
    median of rounds that all of them take part in, so that a loud minute of a neighbour's is nobody's own."""
    cells = [_cell(shape, kind, seed) for shape in SHAPES for kind in FORMATS]
    probe = _Probe()
    rounds = [[cell.share(probe) for cell in cells] for _ in range(ROUNDS)]
    for cell in cells:
        cell.model.close()
    return {cell.name: median(seen) for cell, seen in zip(cells, zip(*rounds, strict=True), strict=True)}


def _cell(shape: Decode, kind: str, seed: int) -> _Cell:
    model, rows = _attention_only(shape, kind), shape.rows(seed)
    kv = model.new_kv(rows.tables.size)
    _fill(kv, seed)
    num_bytes = 2 * shape.seqs * shape.context * shape.kv_heads * shape.size * FORMATS[kind][1]
    return _Cell(f"{shape} {kind}", model, model.attention_alone(rows, kv), num_bytes)


@cache
def over_torch(kind: str, seed: int) -> float:
    """Time of torch's gather and attention over ours, first shape: the median of interleaved rounds."""
    shape = SHAPES[0]
    model = _attention_only(shape, kind)
    rows = shape.rows(seed)
    kv = model.new_kv(rows.tables.size)
    attend = model.attention_alone(rows, kv)
    dtype = getattr(torch, kind)
    pools = torch.randn(2, rows.tables.size * PAGE, shape.kv_heads, shape.size).to(dtype)
    q = torch.randn(shape.seqs, shape.kv_heads * shape.share, shape.size).to(dtype)
    groups = plan_groups(rows, PAGE, "cpu", windows=False)
    ratios = []
    for _ in range(ROUNDS):
        # The best of a few calls: torch's threads spin on for a while and hold a core that ours wants.
        theirs_s = min(
            _seconds(lambda: paged_attention(q, pools[0], pools[1], groups, None)) for _ in range(CALLS)
        )
        ratios.append(theirs_s / min(_seconds(attend) for _ in range(CALLS)))
    model.close()
    return median(ratios)


@dataclass(frozen=True, slots=True)
class Sharing:
    """ratio: time where each sequence reads shared keys for itself, over reading them once: the median of
    interleaved rounds. equal: whether the logits have the same bits."""

    ratio: float
    equal: bool


def attention_once(shape: Decode, kind: str, seed: int) -> float:
    """The ratio of attention alone."""
    model = _attention_only(shape, kind)
    rows = shape.rows(seed)
    kv = model.new_kv(rows.tables.size)
    _fill(kv, seed)
    ratio = _ratio_of_sharing(model, model.attention_alone(rows, kv))
    model.close()
    return ratio


def step_once(model: CompiledModel, shape: Decode, seed: int) -> Sharing:
    """Of a whole step of a model."""
    rows = shape.rows(seed)
    every = np.arange(shape.seqs)
    rows = replace(rows, tokens=every % model.spec.vocab_size, scored=every)
    kv = model.new_kv(rows.tables.size)
    _fill(kv, seed)
    found = []
    for least in (1, NEVER):
        model.share_keys(least)
        found.append(model.logits(rows, kv).copy())
    ratio = _ratio_of_sharing(model, lambda: model.logits(rows, kv))
    return Sharing(ratio, bool((found[0] == found[1]).all()))


def _ratio_of_sharing(model: CompiledModel, call: Callable[[], object]) -> float:
    ratios = []
    for _ in range(ROUNDS):
        took_s = []
        for least in (1, NEVER):
            model.share_keys(least)
            took_s.append(min(_seconds(call) for _ in range(CALLS)))
        ratios.append(took_s[1] / took_s[0])
    model.share_keys(1)
    return median(ratios)


class _Probe:
    """A streaming read of PROBE_BYTES by all cores; not by OpenMP, whose threads spin on afterwards."""

    def __init__(self) -> None:
        cores = os.cpu_count() or 1
        self._parts = np.array_split(np.ones(PROBE_BYTES // 8, np.int64), cores)
        self._pool = ThreadPoolExecutor(cores)
        self()

    def __call__(self) -> None:
        list(self._pool.map(lambda part: sum_without_lock(part, 1), self._parts))


def _attention_only(shape: Decode, kind: str) -> CompiledModel:
    layout = Layout(shape.spec, MatrixFormat(), -1)
    numbers = Numbers(MatrixFormat(), FORMATS[kind][0], "")
    return CompiledModel(layout, np.zeros(layout.nbytes, np.uint8), _words(), {}, numbers=numbers)


def _words() -> Tokenizer:
    """A model needs a tokenizer, though attention does not."""
    return Tokenizer(resolve("tiny:llama"))


def _fill(kv: CompiledKV, seed: int) -> None:
    """Keys and values as after a prompt: normal numbers in every format."""
    rng = np.random.default_rng(seed)
    for array in (kv.keys, kv.values):
        if array.dtype == np.float32:
            array[...] = rng.standard_normal(array.shape, np.float32)
        elif array.dtype == np.uint16:
            array[...] = narrow(rng.standard_normal(array.size, np.float32)).reshape(array.shape)
        else:
            array[...] = rng.integers(-127, 128, array.shape)
    kv.key_scales[...] = kv.value_scales[...] = 0.01


def _seconds(work: object) -> float:
    assert callable(work)
    clock = WallClock()
    work()
    return clock.now()
