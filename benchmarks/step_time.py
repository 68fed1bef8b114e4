"""How well are step times on this machine predicted? Fit on some loads, predict others of the same model.

The bar: a median error of at most 15 % on loads that were not fitted. Fitting and held-out loads alternate in
time, so a drift of the machine shows as error instead of hiding in the order.
"""

from __future__ import annotations

from statistics import median

import numpy as np
from _report import report

from lightwork.cluster.calibration import Features, fit
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.cost import step_features
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.simulate import SyntheticRequests, run_load

FITTED = [
    Poisson(
        rate=8,
        num_requests=40,
        lengths=Lognormal(prompt=120, output=60, prompt_sigma=0.7, output_sigma=0.7, max_len=1500),
    ),
    Poisson(
        rate=30,
        num_requests=48,
        lengths=Lognormal(prompt=200, output=40, prompt_sigma=0.7, output_sigma=0.7, max_len=1500),
    ),
    Poisson(rate=2, num_requests=8, lengths=Lognormal(prompt=60, output=80, max_len=1500)),
]
HELD_OUT = [
    Poisson(
        rate=15,
        num_requests=40,
        lengths=Lognormal(prompt=150, output=50, prompt_sigma=0.7, output_sigma=0.7, max_len=1500),
    ),
    Poisson(
        rate=4,
        num_requests=16,
        lengths=Lognormal(prompt=400, output=30, prompt_sigma=0.4, output_sigma=0.4, max_len=1500),
    ),
]


def measure(load: Poisson, seed: int, model: str = "tiny:llama") -> list[tuple[Features, float]]:
    """Features and seconds of every step of a load, served for real."""
    kernel = Kernel(WallClock(), seed=seed, trace=Trace("real"))
    plan = Plan(model=model, use=(Sarathi(chunk=256),), prefix_cache=False)
    engine, loaded, _ = open_engine(plan, kernel)
    features: list[Features] = []
    run = engine.runner.run

    def recorded(step: Step) -> object:
        features.append(step_features(step))
        return run(step)

    engine.runner.run = recorded  # type: ignore[method-assign, assignment]
    arrivals = load.arrivals(kernel.rng("load"))
    requests = SyntheticRequests(arrivals, loaded.spec.vocab_size, kernel.rng("prompts"))
    run_load(engine, arrivals, requests)
    assert kernel.trace is not None
    steps = [span for span in kernel.trace.spans if span.kind == "step"]
    return [(f, span.end_s - span.start_s) for f, span in zip(features, steps, strict=True)]


def main() -> None:
    measure(HELD_OUT[0], seed=99)
    fitted: list[tuple[Features, float]] = []
    held_out: list[tuple[Features, float]] = []
    for i, load in enumerate(FITTED):
        fitted += measure(load, seed=i)
        if i < len(HELD_OUT):
            held_out += measure(HELD_OUT[i], seed=10 + i)
    calibration = fit(fitted)
    errors = [abs(calibration.predict(f) / s - 1.0) for f, s in held_out]
    report(
        "step_time",
        median_error=round(median(errors), 4),
        p90_error=round(float(np.percentile(errors, 90)), 4),
        fitted_error=round(calibration.error, 4),
        steps=len(errors),
        median_step_ms=round(1e3 * median(s for _, s in held_out), 3),
        bar=0.15,
        holds=median(errors) <= 0.15,
    )


if __name__ == "__main__":
    main()
