"""What a model says: greedy continuations, by the engine that serves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightwork.decode.sampling import Sampling
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load


def own_texts(
    plan: Plan, prompts: Sequence[Sequence[int]], max_tokens: int, **parts: Any
) -> tuple[Engine, list[Seq]]:
    """The prompts continued, all at once, each up to where the model ends it; the model is closed.

    plan: of one engine. parts: what else `Engine` takes. Raises CheckpointError, SpecError, CapacityError.
    """
    engine, model, _ = open_one(plan, Kernel(WallClock()), **parts)
    greedy, ends = Sampling(temperature=0.0), frozenset(model.tokenizer.eos_ids)
    requests = [
        Request(prompt=tuple(prompt), max_tokens=max_tokens, sampling=greedy, stop_ids=ends)
        for prompt in prompts
    ]
    try:
        model.warm_up()
        return engine, run_load(engine, [0.0] * len(requests), requests)
    finally:
        model.close()
