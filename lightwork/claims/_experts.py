"""Four models of 184 million parameters on this CPU, some of them resident: what switches cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightwork.claims._random_llama import random_llama
from lightwork.decode.sampling import Sampling
from lightwork.home import home
from lightwork.models.compiled import CompiledModel
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.compositions.experts import Experts
from lightwork.serve.engine import Engine
from lightwork.serve.expert_runner import ExpertRunner
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load

GB = 0.37
PROMPT = (5, 6, 7, 8)


def folder() -> Path:
    """Three experts beside `random_llama()`, each of its own weights."""
    top = home() / "claims" / "experts-184m"
    top.mkdir(exist_ok=True, parents=True)
    for seed in (1, 2, 3):
        link, target = top / f"expert {seed}", random_llama(seed)
        if not link.exists():
            link.symlink_to(target)
    return top


class FourModels:
    """An engine over them with so many places in fast memory; all have been asked once."""

    def __init__(self, places: int, *, prefetch: bool = False, threads: int | None = None) -> None:
        use = (Experts(folder=str(folder()), gb=places * GB, prefetch=prefetch),)
        plan = Plan(model=random_llama(), use=use, max_len=256, threads=threads, prefix_cache=False)
        self.trace = Trace("real: cpu")
        engine, model, _ = open_engine(plan, Kernel(WallClock(), trace=self.trace))
        assert isinstance(engine, Engine)
        assert isinstance(engine.runner, ExpertRunner)
        assert isinstance(model, CompiledModel)
        self.engine, self.model = engine, model
        self.names = [*engine.runner.residents.sizes]
        model.warm_up()
        self.ask(self.names, 1)

    def ask(self, models: Sequence[str], output: int) -> float:
        """Seconds until requests that come at once, one of each model, have ended."""
        clock = WallClock()
        greedy = Sampling(temperature=0.0)
        requests = [
            Request(prompt=PROMPT, max_tokens=output, sampling=greedy, model=model) for model in models
        ]
        run_load(self.engine, [0.0] * len(models), requests)
        return clock.now()

    def durations(self, kind: str) -> list[float]:
        """Of the spans so far."""
        return [span.end_s - span.start_s for span in self.trace.spans if span.kind == kind]

    def close(self) -> None:
        self.model.close()
