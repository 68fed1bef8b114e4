"""Rows without padding against rows with it, on a real model; lengths of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import median

import numpy as np

from lightwork import models
from lightwork.claims._random_llama import random_llama
from lightwork.kernels.rows import Rows
from lightwork.runtime.clock import cpu_s


def even(num: int, shortest: int, longest: int) -> list[int]:
    """Lengths between the two, both included, at equal distances."""
    return [round(n) for n in np.linspace(shortest, longest, num)]


LENGTHS = even(8, 16, 256)


def packed(lengths: Sequence[int], apart: int) -> Rows:
    """Sequences one after the other, each in blocks of its own; the last row of each is scored."""
    blocks, ends = -(-apart // 16), np.cumsum(lengths)
    index = np.concatenate([np.arange(n) for n in lengths])
    seqs = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return Rows(
        tokens=index % 2048,
        positions=index,
        slots=seqs * blocks * 16 + index,
        seqs=seqs,
        index=index,
        ancestors=np.zeros(len(index), np.uint64),
        known=np.array(lengths),
        tables=np.arange(len(lengths) * blocks, dtype=np.int32).reshape(len(lengths), blocks),
        scored=ends - 1,
    )


@dataclass(frozen=True, slots=True)
class Padding:
    """How many times the rows, the CPU time of one product, and that of a model, padded over packed; and how
    far the outputs are apart."""

    rows: float
    product: float
    model: float
    apart: float


@cache
def padding() -> Padding:
    import torch

    model = models.load(random_llama())
    model.set_threads(1)
    longest, num = max(LENGTHS), len(LENGTHS)
    without, padded = packed(LENGTHS, longest), packed([longest] * num, longest)
    padded.scored = np.arange(num) * longest + np.array(LENGTHS) - 1
    kv = model.new_kv(num * -(-longest // 16), 16)
    weight = model.weights.layers[0].up
    inputs = [torch.ones(len(rows.tokens), model.spec.hidden_size) for rows in (without, padded)]
    timed = []
    for _ in range(3):
        whole = [_cpu_s(partial(model.logits, rows, kv)) for rows in (without, padded)]
        product = [_cpu_s(partial(torch.nn.functional.linear, x, weight)) for x in inputs]
        timed.append((product[1] / product[0], whole[1] / whole[0]))
    apart = np.abs(model.logits(without, kv) - model.logits(padded, kv)).max()
    rows = len(padded.tokens) / len(without.tokens)
    products, wholes = zip(*timed, strict=True)
    return Padding(rows, median(products), median(wholes), float(apart))


def _cpu_s(work: Callable[[], object]) -> float:
    begin_s = cpu_s()
    work()
    return cpu_s() - begin_s
