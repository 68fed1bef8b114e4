"""Passes of a model some of whose layers are in another memory: simulated, and with another process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from statistics import median

import numpy as np

from lightwork import models
from lightwork.claims._padding import packed
from lightwork.claims._random_llama import random_llama
from lightwork.cluster import CostModel, parse_place
from lightwork.memory.peers import SLOTS, Pooled
from lightwork.memory.spilled import hidden, passes, spread
from lightwork.models.presets import preset
from lightwork.models.spec import ModelSpec
from lightwork.models.work import forward_work
from lightwork.runtime.clock import WallClock, cpu_s
from lightwork.runtime.effects import Compute, Meta, Move
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.simulated import SimWorld
from lightwork.serve.cost import KV_SHARE

GPT3 = preset("opt-175b")


def layers(num: int) -> ModelSpec:
    return replace(GPT3, num_layers=num)


POOLED_LAYERS, POOLED_ROWS, NUM_PASSES = 40, 1024, 8
"""Twice as many layers as one device holds; 16 sequences of 64 tokens."""


@cache
def pooled_pass_s(memory: str | None, rows: int) -> float:
    """Seconds of a pass whose layers that do not fit are in that memory; None: as if all of them fitted."""
    cluster = parse_place("sim:a100x8")
    kernel, costs = Kernel(), CostModel(cluster)
    layer = Meta((GPT3.attention_params + GPT3.mlp_params() // GPT3.num_layers,), "float16")
    fit = int(KV_SHARE * cluster.device.memory().bytes / layer.nbytes) - SLOTS
    away = spread(POOLED_LAYERS, POOLED_LAYERS - fit) if memory is not None else []
    work = forward_work(layers(1), [(0, 64)] * (rows // 64), 0, dtype="float16")
    world = SimWorld(kernel, costs.price, costs.resources())
    strategy = passes(
        0,
        [None] * NUM_PASSES,
        POOLED_LAYERS,
        away,
        lambda number, slot: Move(layer, memory or "", "memory"),
        lambda number, slot, x: Compute(work, None, (x,)),
        slots=SLOTS,
    )
    world.launch(0, strategy)
    world.run()
    return kernel.now() / NUM_PASSES


ALLOWED = 0.6
"""Share of the weights that may be here."""
MANY, FEW = 256, 1
"""Rows that hide a layer's way, and that do not."""


@cache
def pooled() -> tuple[dict[int, float], dict[int, bool], str]:
    """For each number of rows: time with a peer over time without, and whether fetching was foreseen to be
    hidden; and what it was measured on. One thread computes, so that the other core is the link's.
    """
    whole = models.load(random_llama())
    whole.set_threads(1)
    ratios, foreseen = {}, {}
    with closing(Pooled(random_llama(), int(ALLOWED * whole.nbytes))) as parts:
        assert parts.arena.used_bytes <= ALLOWED * whole.nbytes
        for num in (MANY, FEW):
            rows, kv = packed([num], num), whole.new_kv(-(-num // 16), 16)
            assert np.array_equal(parts.logits(rows, kv), whole.logits(rows, kv))
            in_turn = (whole, parts, parts, whole)
            timed = [[_timed_s(partial(m.logits, rows, kv)) for m in in_turn] for _ in range(5)]
            ratios[num] = median((b + c) / (a + d) for a, b, c, d in timed)
            begin_s = cpu_s()
            whole.logits(rows, kv)
            layer_s = (cpu_s() - begin_s) / whole.spec.num_layers
            foreseen[num] = hidden(whole.spec.num_layers, len(parts.away), layer_s, parts.fetch_s)
        note = f"{len(parts.away)} of {whole.spec.num_layers} layers, each {1e3 * parts.fetch_s:.0f} ms away"
    return ratios, foreseen, note


def _timed_s(work: Callable[[], object]) -> float:
    clock = WallClock()
    work()
    return clock.now()
