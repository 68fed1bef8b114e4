"""Decoding with experts in host memory, as effects: what is late is waited for, what is expected is fetched
while the layer before computes.

Paper:  "Fast Inference of Mixture-of-Experts Language Models with Offloading", 2023
Idea:   of a token's experts those that are there compute first, the others are on their way meanwhile; at the
        same time come those that the next layer is expected to need. A wrong guess takes the link's time
Shapes: Routes, an ExpertCache, Guesses -> one token after another
Cost:   per token the longer of what is computed and what is copied, and the waits that neither hides
Claims: moe_survey

L layers that have experts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.memory.expert_cache import Copied, ExpertCache, Guesses, Routes
from lightwork.runtime.effects import Compute, Meta, Move, Spawn, Work
from lightwork.runtime.futures import Future


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWork:
    """Of one token. around: a layer but for its experts, layers without experts in it. expert: one expert.
    head: after the last layer."""

    around: Sequence[Work]
    expert: Sequence[Work]
    head: Sequence[Work] = ()


async def decode(routes: Routes, cache: ExpertCache, work: TokenWork, guesses: Guesses | None = None) -> None:
    """Tokens that are routed so. The cache decides what is copied, and counts."""
    coming: dict[tuple[int, int], Future] = {}
    for n, of_layers in enumerate(routes):
        for layer, experts in enumerate(of_layers):
            await Compute(work.around, name="around")
            await _fetch(layer, cache.use(layer, experts), cache.expert_bytes, coming)
            if guesses is not None and layer + 1 < len(of_layers):
                ahead = cache.expect(layer + 1, guesses.experts_NLW[n, layer].tolist())
                await _fetch(layer + 1, ahead, cache.expert_bytes, coming)
            for e in sorted(experts, key=lambda e: (layer, e) in coming):
                arrived = coming.pop((layer, e), None)
                if arrived is not None:
                    await arrived
                await Compute(work.expert, name="expert")
        await Compute(work.head, name="head")


async def _fetch(
    layer: int, copied: Sequence[Copied], expert_bytes: int, coming: dict[tuple[int, int], Future]
) -> None:
    """Begin to copy."""
    for expert, _ in copied:
        coming[layer, expert] = await Spawn(_copy(expert_bytes), "fetch")


async def _copy(expert_bytes: int) -> None:
    await Move(Meta((expert_bytes,), "int8"), "host", "memory")
