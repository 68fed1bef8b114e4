"""A load served for real on this CPU, as claims about serving measure it."""

from __future__ import annotations

from collections.abc import Sequence

from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.loads import Arrival, Load
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import SyntheticRequests, run_load


def serve(plan: Plan, load: Load | Sequence[Arrival], seed: int) -> tuple[Trace, list[Seq]]:
    """The run's trace and its sequences, in the order of requests. The model's threads end with it."""
    trace = Trace(f"real: {plan.on}")
    kernel = Kernel(WallClock(), seed=seed, trace=trace)
    engine, model, _ = open_engine(plan, kernel)
    model.warm_up()
    arrivals = load if isinstance(load, Sequence) else load.arrivals(kernel.rng("load"))
    requests = SyntheticRequests(arrivals, model.spec.vocab_size, kernel.rng("prompts"))
    try:
        return trace, run_load(engine, arrivals, requests)
    finally:
        engine.close()
        model.close()
