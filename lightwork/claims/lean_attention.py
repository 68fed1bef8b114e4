"""Lean Attention: decode attention split by tiles, against one worker per head and against fixed parts.

The three splits on simulated A100 and H100, one layer, one query row per head, bfloat16. The publication's
exact grid is not at hand, so one was laid down before anything was measured, and the figures judged are those
of all of it: the heads of the OPT family (multi-head, as most models of the time), contexts of 1,024 to
524,288 keys, batches of 1, 2, 4 and 8, each also ragged (lengths spread evenly up to the context), as long as
one layer's keys and values fit in memory. Notes give the figure of each device; docs/log.md says what a
narrower grid would have shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import fmean

import numpy as np

from lightwork.claims import Lab, Measured, claim
from lightwork.claims._attention import SHAPES, of_probe, over_torch
from lightwork.cluster import parse_place
from lightwork.kernels.makespan import makespan
from lightwork.kernels.splits import Grid
from lightwork.kernels.splits.flash_decoding import FlashDecoding
from lightwork.kernels.splits.lean import Lean
from lightwork.kernels.splits.one_per_head import OnePerHead

OPT = ((12, 64), (16, 64), (32, 64), (32, 128), (40, 128), (56, 128), (72, 128))
"""Heads and their size, from 125 million to 66 billion parameters."""
CONTEXTS = tuple(1 << n for n in range(10, 20))
BATCHES = (1, 2, 4, 8)
PLACES = ("sim:a100", "sim:h100")
TILES = {64: 256, 128: 128}
"""Keys in a tile by head size: 64 KiB of keys and values either way."""
WAVES = 4
SAWTOOTH_SPLITS = 4
SAWTOOTH_KEYS = 1 << 16
TOOTH = 0.1
RANDOM_GRIDS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Seconds of the three splits on one set of sequences."""

    context: int
    lean_s: float
    decoding_s: float
    per_head_s: float
    words: str


def _sequences(context: int) -> Iterator[tuple[int, ...]]:
    for batch in BATCHES:
        yield (context,) * batch
        if batch > 1:
            yield tuple(context * (i + 1) // batch for i in range(batch))


@cache
def points(place: str) -> tuple[Point, ...]:
    device = parse_place(place).device
    found = []
    for heads, size in OPT:
        for keys in (keys for context in CONTEXTS for keys in _sequences(context)):
            if 4 * size * heads * sum(keys) > device.memory().bytes:
                continue
            grid = Grid.of(keys, heads=heads, tile=TILES[size], workers=device.unit.count)
            lean, decoding, per_head = (
                makespan(split, grid, place, head_size=size).seconds
                for split in (Lean(), FlashDecoding(), OnePerHead())
            )
            kind = "ragged" if keys[0] < keys[-1] else "even"
            words = f"{heads} heads of {size}, batch {len(keys)} {kind}"
            found.append(
                Point(
                    context=keys[-1],
                    lean_s=lean,
                    decoding_s=decoding,
                    per_head_s=per_head,
                    words=words,
                )
            )
    return tuple(found)


def _mean(ratio: Callable[[Point], float]) -> Measured:
    by_place = {place: [ratio(p) for p in points(place)] for place in PLACES}
    ratios = [r for seen in by_place.values() for r in seen]
    note = f"{len(ratios)} grids, from {min(ratios):.2f} to {max(ratios):.2f}"
    return Measured(fmean(ratios), f"{note}; {_each({p: fmean(seen) for p, seen in by_place.items()})}")


def _most(ratio: Callable[[Point], float], context: int) -> Measured:
    best = {place: max((p for p in points(place) if p.context == context), key=ratio) for place in PLACES}
    most = max(best.values(), key=ratio)
    return Measured(ratio(most), f"{most.words}; {_each({p: ratio(b) for p, b in best.items()})}")


def _each(figures: dict[str, float]) -> str:
    return ", ".join(f"{place} {figure:.2f}" for place, figure in figures.items())


def over_one_per_head(p: Point) -> float:
    return p.per_head_s / p.lean_s


def over_flash_decoding(p: Point) -> float:
    return p.decoding_s / p.lean_s


@claim(
    "lean_attention",
    title="attention time of one worker per head (FlashAttention-2) over Lean, mean of all grids",
    paper="2.6x on average (first version of the publication)",
    expect=2.6,
    within=0.25,
)
def mean_over_one_per_head(lab: Lab) -> Measured:
    return _mean(over_one_per_head)


@claim(
    "lean_attention",
    title="the same, the most at 512k keys",
    paper="up to 8.33x at 512k (first version)",
    expect=8.33,
    within=0.25,
)
def most_over_one_per_head(lab: Lab) -> Measured:
    return _most(over_one_per_head, 1 << 19)


@claim(
    "lean_attention",
    title="attention time of FlashDecoding over Lean, mean of all grids",
    paper="1.73x on average (later version)",
    expect=1.73,
    within=0.25,
)
def mean_over_flash_decoding(lab: Lab) -> Measured:
    return _mean(over_flash_decoding)


@claim(
    "lean_attention",
    title="the same, the most at 256k keys",
    paper="up to 2.18x at 256k (later version)",
    expect=2.18,
    within=0.25,
)
def most_over_flash_decoding(lab: Lab) -> Measured:
    return _most(over_flash_decoding, 1 << 18)


@cache
def shares(split: Lean | FlashDecoding) -> tuple[float, ...]:
    """Share of the workers' time in tiles, heads growing until their parts fill WAVES waves."""
    workers = parse_place(PLACES[0]).device.unit.count
    most = WAVES * workers // SAWTOOTH_SPLITS
    grids = (
        Grid.of([SAWTOOTH_KEYS], heads=heads, tile=TILES[64], workers=workers) for heads in range(8, most + 1)
    )
    return tuple(makespan(split, grid, PLACES[0], head_size=64).share for grid in grids)


def _teeth(seen: tuple[float, ...]) -> int:
    """Where one head more costs more than TOOTH of the efficiency."""
    return sum(b < (1 - TOOTH) * a for a, b in pairwise(seen))


@claim(
    "lean_attention",
    title="falls of FlashDecoding's efficiency as heads x 4 parts grow to four waves of an A100's units",
    paper="a sawtooth: the last wave is rarely full",
    expect=WAVES - 1,
    within=0.0,
    unit="",
)
def flash_decoding_is_a_sawtooth(lab: Lab) -> Measured:
    seen = shares(FlashDecoding(splits=SAWTOOTH_SPLITS))
    return Measured(_teeth(seen), f"efficiency from {min(seen):.2f} to {max(seen):.2f}")


@claim(
    "lean_attention",
    title="falls of Lean's efficiency on the same heads",
    paper="a flat line, near-perfect occupancy",
    expect=0.0,
    within=0.0,
    unit="",
)
def lean_is_flat(lab: Lab) -> Measured:
    seen = shares(Lean())
    return Measured(_teeth(seen), f"efficiency from {min(seen):.2f} to {max(seen):.2f}")


@claim(
    "lean_attention",
    title="Lean's worst efficiency over its best on the same heads",
    paper="a flat line, near-perfect occupancy; our bar",
    expect=1.0,
    within=0.05,
)
def lean_hardly_varies(lab: Lab) -> Measured:
    seen = shares(Lean())
    fewest = 8 + seen.index(min(seen))
    return Measured(min(seen) / max(seen), f"efficiency {min(seen):.2f} at {fewest} heads: fixed launches")


@claim(
    "lean_attention",
    title="most tiles of a worker over the mean, as a share of the bound 1 + W / total, ragged batches",
    paper="all workers end together whatever the lengths",
    expect=1.0,
    within=0.0,
    bound="at most",
)
def workers_end_together(lab: Lab) -> Measured:
    rng = np.random.default_rng(lab.seed)
    worst = 0.0
    for _ in range(RANDOM_GRIDS):
        keys = rng.integers(1, 1 << int(rng.integers(1, 18)), int(rng.integers(1, 33)))
        workers = int(rng.integers(1, 300))
        grid = Grid.of(keys, heads=int(rng.integers(1, 65)), tile=128, workers=workers)
        runs = Lean().runs(grid)
        most, mean = int((runs[:, 1] - runs[:, 0]).max()), grid.total / workers
        worst = max(worst, most / mean / (1 + workers / grid.total))
    return Measured(worst, f"{RANDOM_GRIDS} batches, seed {lab.seed}")


@claim(
    "lean_attention",
    title="compiled attention: bytes per second over a read of memory, worst of 3 shapes and 3 formats",
    paper="our bar on a CPU",
    expect=0.8,
    within=0.0,
    bound="at least",
    mode="real",
)
def attention_at_memory_speed(lab: Lab) -> Measured:
    seen = of_probe(lab.seed)
    worst = min(seen, key=lambda words: seen[words])
    return Measured(seen[worst], "; ".join(f"{words} {share:.2f}" for words, share in seen.items()))


@claim(
    "lean_attention",
    title="compiled attention over torch's gather and attention, the lesser of float32 and bfloat16",
    paper="our bar on a CPU",
    expect=5.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def attention_over_torch(lab: Lab) -> Measured:
    seen = {kind: over_torch(kind, lab.seed) for kind in ("float32", "bfloat16")}
    note = ", ".join(f"{kind} {ratio:.1f}x" for kind, ratio in seen.items())
    return Measured(min(seen.values()), f"{SHAPES[0]}: {note}")
