"""How well is this machine predicted? Step times fitted to some loads, others of the same model predicted.

    python benchmarks/step_time.py [MODEL]

The bars, on loads that were not fitted: a median error of at most 5 % of a step, 15 % of the 99th percentile
of a request's life. Fitting and held-out loads alternate in time, so a drift of the machine shows as error
instead of hiding in the order. What of the error is noise is told by one more load, served several times with
the same steps: how far each run is from the median of all, which no prediction can be nearer to, and how far
the prediction is from that median.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import median

import numpy as np
from _report import report
from numpy.typing import NDArray

from lightwork.cluster.calibration import Calibration, Sample, fit
from lightwork.plan.why import Record
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Load
from lightwork.serve.loads.closed_loop import ClosedLoop
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.replay import decisions, samples
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

REPEATED, RUNS = (
    ClosedLoop(
        clients=4,
        num_requests=24,
        lengths=Lognormal(prompt=150, output=50, prompt_sigma=0.7, output_sigma=0.7, max_len=1500),
    ),
    7,
)


def measure(load: Load, seed: int, model: str) -> Trace:
    """The trace of a load, served for real."""
    kernel = Kernel(WallClock(), seed=seed, trace=(trace := Trace("real")))
    plan = Plan(model=model, use=(Sarathi(chunk=256),), prefix_cache=False, max_len=2048)
    engine, loaded, _ = open_engine(plan, kernel)
    loaded.warm_up()
    arrivals = load.arrivals(kernel.rng("load"))
    run_load(engine, arrivals, SyntheticRequests(arrivals, loaded.spec.vocab_size, kernel.rng("prompts")))
    loaded.close()
    return trace


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny:llama"
    measure(HELD_OUT[0], 99, model)
    fitted: list[Sample] = []
    held_out: list[Trace] = []
    for i, load in enumerate(FITTED):
        fitted += samples(measure(load, i, model).spans)
        if i < len(HELD_OUT):
            held_out.append(measure(HELD_OUT[i], 10 + i, model))
    calibration = fit(fitted)
    again = [measure(REPEATED, 20, model) for _ in range(RUNS)]
    again = [trace for trace in again if decisions(trace) == decisions(again[0])]
    took_s = np.array([[seconds for _, seconds in samples(trace.spans)] for trace in again])
    typical_s = np.median(took_s, axis=0)
    predicted_s = [calibration.predict(features) for features, _ in samples(again[0].spans)]
    steps = [sample for trace in held_out for sample in samples(trace.spans)]
    errors = [abs(calibration.predict(features) / seconds - 1.0) for features, seconds in steps]
    lives = [_life_error(trace, calibration) for trace in held_out]
    report(
        "step_time",
        model=model,
        median_error=round(median(errors), 4),
        p90_error=round(float(np.percentile(errors, 90)), 4),
        fitted_error=round(calibration.error, 4),
        runs_alike=len(again),
        run_to_median=_error(took_s, typical_s),
        prediction_to_median=_error(np.array(predicted_s), typical_s),
        life_p99_error=[round(error, 4) for error in lives],
        steps=len(errors),
        median_step_ms=round(1e3 * median(seconds for _, seconds in steps), 3),
        bars=[0.05, 0.15],
        holds=median(errors) <= 0.05 and max(lives) <= 0.15,
    )


def _error(guessed_s: NDArray[np.float64], seconds: NDArray[np.float64]) -> float:
    """The median one of a step."""
    return round(float(np.median(np.abs(guessed_s / seconds - 1.0))), 4)


def _life_error(trace: Trace, calibration: Calibration) -> float:
    """Of the 99th percentile of a request's life, the load run again in simulation."""
    record = replace(Record.of(trace), calibration=calibration)
    return abs(record.predict(record.plan).latency_p99_s / record.figures.latency_p99_s - 1.0)


if __name__ == "__main__":
    main()
