"""Measures this machine and writes its description: every value with method, repeats and spread.

samples.py     a `Bench`, timed in rounds among the others; `Sample`, what was seen
levels.py      levels of memory from a latency curve
memory.py      pointer chases, streams over each level, a file
rates.py       matrix, attention and vector rates by type and number of rows; what a call costs
pipe.py        two processes
describe.py    from samples to a `Cluster`
validate.py    held-out kernels: predicted against measured

The one interface is `probe()`. To add a quantity, give a file that has `benches()` one more `Bench`, and
describe.py the field it fills. Needs neither torch nor numba: what they would measure is then absent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightwork.cluster.devices import Cluster
from lightwork.cluster.probe import memory, pipe, rates
from lightwork.cluster.probe.describe import describe
from lightwork.cluster.probe.levels import Level, detect_levels
from lightwork.cluster.probe.samples import Sample, measure
from lightwork.cluster.probe.validate import Prediction, compare, held_out, validate
from lightwork.errors import LightworkError
from lightwork.home import save
from lightwork.runtime import WallClock, cpu_s

MAX_SPREAD = 0.3
MIN_SHARE = 0.9
MAX_REGION_S = 5e-4
"""A parallel region takes microseconds; milliseconds are time slices, waiting for a core."""

Progress = Callable[[str], None]

__all__ = ["Level", "Prediction", "Report", "Sample", "detect_levels", "probe", "survey", "validate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """machine: the description. samples: what it was made of. declared: cache sizes the system reports.

    share: of a core that one busy thread got; less than 1 when other processes want it too. predictions:
    kernels the description was not made from, timed among those that it was.
    """

    machine: Cluster
    samples: tuple[Sample, ...]
    declared: dict[str, int]
    share: float
    predictions: tuple[Prediction, ...]

    def check(self) -> None:
        """Raises LightworkError if others used the machine, or a described value swung too much.

        Single footprints of the pointer chase are no such values: those around a capacity swing by nature,
        and only say where it is. What is described of them, each level's latency, is judged.
        """
        if self.share < MIN_SHARE:
            raise LightworkError(
                f"one busy thread got {self.share:.0%} of a core: other processes run here",
                expected=f"at least {MIN_SHARE:.0%}",
                fix="stop them, or force it",
            )
        region_s = next((s.median for s in self.samples if s.name == "call/region"), 0.0)
        if region_s > MAX_REGION_S:
            raise LightworkError(
                f"a parallel region takes {region_s * 1e3:.1f} ms: the cores are not free together",
                expected=f"at most {MAX_REGION_S * 1e3} ms",
                fix="stop what else runs here, or force it",
            )
        *caches, main = [m for m in self.machine.device.memories if m.name != "disk"]
        for cache in caches:
            if cache.read_bytes_per_s < main.read_bytes_per_s:
                raise LightworkError(
                    f"{cache.name} reads at {cache.read_bytes_per_s / 1e9:.2g} GB/s, slower than memory",
                    expected=f"at least {main.read_bytes_per_s / 1e9:.2g} GB/s: its parallel regions waited",
                    fix="stop what else runs here, or force it",
                )
        described = [s for s in self.samples if not s.name.startswith("chase/")]
        worst = max(described, key=lambda s: s.spread)
        if worst.spread > MAX_SPREAD:
            raise LightworkError(
                f"{worst.name} swings by {worst.spread:.0%} between repeats",
                expected=f"at most {MAX_SPREAD:.0%}",
                fix="stop what else runs here, or force it",
            )


def probe(
    out: Path | None = None, *, quick: bool = False, force: bool = False, progress: Progress | None = None
) -> Cluster:
    """Measure this machine; with out, write its description there as JSON.

    Raises LightworkError, and writes nothing, if a value swings by more than MAX_SPREAD or
    others use the machine, unless forced.
    """
    report = survey(quick=quick, progress=progress)
    if out is not None:
        if not force:
            report.check()
        text = json.dumps(report.machine.to_dict(), indent=1) + "\n"
        save(out, lambda part: part.write_text(text, encoding="utf-8"))
    return report.machine


def survey(*, quick: bool = False, progress: Progress | None = None) -> Report:
    """Measure this machine in less than a minute; quick: in seconds, with fewer sizes and repeats."""
    tell = progress or (lambda text: None)
    rounds = 3 if quick else 15
    tell("latency of each level of memory")
    clock, busy_s = WallClock(), cpu_s()
    chases = measure(memory.chases(quick), rounds)
    share = (cpu_s() - busy_s) / clock.now() if chases else 1.0
    found = detect_levels([(size, min(sample.values)) for size, sample in memory.footprints(chases)])
    tell("bandwidth of each level of memory")
    streams = measure(memory.streams(found, quick), rounds)
    tell("rates of matrix, attention and vector kernels")
    kernels = [] if quick else held_out()
    speeds = measure([*rates.benches(quick), *(k.bench() for k in kernels)], rounds)
    fitted, unseen = speeds[: len(speeds) - len(kernels)], speeds[len(speeds) - len(kernels) :]
    tell("files and processes")
    with memory.file_benches(quick) as files, pipe.benches(quick) as pipes:
        others = measure([*files, *pipes], rounds)
    samples = (*chases, *memory.plateaus(found, chases), *streams, *fitted, *others)
    declared = memory.declared()
    machine = describe(samples, found, declared)
    return Report(
        machine=machine,
        samples=samples,
        declared=declared,
        share=share,
        predictions=tuple(compare(machine, kernels, unseen)),
    )
