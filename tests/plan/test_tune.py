"""The tuner: what it searches, that it keeps the default where nothing is ahead, and that failures are
recorded."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import pytest

from lightwork.cli import main
from lightwork.errors import CapacityError, SpecError
from lightwork.plan import tune as tuning_module
from lightwork.plan.tune import Bench, Setting, Tuned, Tuning, peaks, tune, variants
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads.burst import Burst
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.sarathi import Sarathi

LOAD = Burst(num_requests=12, lengths=Lognormal(prompt=40, output=24))


class Landscape(Bench):
    """Figures by a formula in place of a model: what the search does with them is what is tested."""

    def __init__(self, measured: Callable[[Setting], float], predicted: Callable[[Setting], float]) -> None:
        self._measured, self._predicted = measured, predicted
        self.asked: list[Setting] = []
        self.runs = 0
        self.threads = Tuning(plan=Plan(), load=LOAD).axes()["threads"][-1]

    def measure(self, setting: Setting) -> float:
        self.runs += 1
        self.asked.append(setting)
        return self._measured(setting)

    def predict(self, settings: Sequence[Setting]) -> list[float]:
        return [self._predicted(setting) for setting in settings]


def tuned(measured: Callable[[Setting], float], predicted: Callable[[Setting], float] | None = None) -> Tuned:
    return tune(Tuning(plan=Plan(), load=LOAD), bench=Landscape(measured, predicted or measured))


def hill(setting: Setting) -> float:
    chunk = setting.scheduler.chunk if isinstance(setting.scheduler, Sarathi) else 8192
    return 100.0 / (1 + abs(chunk - 256) / 256) * (1 - abs(setting.max_seqs - 32) / 256)


def test_numbers_of_a_scheduler_are_halved_and_doubled() -> None:
    chunks = [s.chunk for s in variants(Sarathi()) if isinstance(s, Sarathi)]
    assert chunks == [32, 64, 128, 256, 512, 1024, 2048]
    assert Sarathi(chunk=512) in variants(Sarathi())


def test_the_best_of_a_hill_is_found_with_few_runs() -> None:
    found = tuned(hill)
    assert found.best.setting[:2] == (Sarathi(chunk=256), 32)
    assert found.runs < 0.25 * len(found.trials)
    assert {curve.name: curve.peaks for curve in found.curves}["scheduler"] == 1


def test_a_prediction_that_is_wrong_does_not_decide() -> None:
    """The simulation likes large chunks, the machine does not: measurements say so."""
    found = tuned(hill, lambda setting: 1 / hill(setting))
    assert found.best.ratio >= 1
    assert found.best is found.default or found.best.ratio > 1 + found.noise


def test_nothing_ahead_beyond_noise_keeps_the_default() -> None:
    figures = cycle([1.0, 1.3, 0.7])
    found = tuned(lambda setting: next(figures), hill)
    assert found.best is found.default
    assert found.noise > 0.1


def test_a_setting_that_fails_is_a_trial_like_any_other() -> None:
    def measured(setting: Setting) -> float:
        if setting.max_seqs == 32:
            raise CapacityError("no memory for 32 sequences")
        return hill(setting)

    found = tuned(measured, hill)
    failed = [trial for trial in found.trials if trial.why]
    assert failed
    assert all(trial.why == "no memory for 32 sequences" for trial in failed)
    assert found.best.setting.max_seqs != 32


def test_a_promise_that_the_default_keeps_for_nobody_is_no_error() -> None:
    found = tuned(lambda setting: hill(setting) if setting.max_seqs == 32 else 0.0, hill)
    assert found.best.setting.max_seqs == 32
    assert tuned(lambda setting: 0.0, hill).best.ratio == 1


def test_equal_measurements_give_equal_proposals() -> None:
    benches = [Landscape(hill, hill) for _ in range(2)]
    for bench in benches:
        tune(Tuning(plan=Plan(), load=LOAD), bench=bench)
    assert benches[0].asked == benches[1].asked


@pytest.mark.parametrize(
    ("heights", "noise", "count"),
    [
        ([1, 2, 3], 0.0, 1),
        ([3, 2, 1], 0.0, 1),
        ([1, 3, 2, 4, 1], 0.1, 2),
        ([1, 3, 2.9, 4, 1], 0.1, 1),
        ([5], 0, 1),
    ],
)
def test_peaks_are_counted_above_noise(heights: list[float], noise: float, count: int) -> None:
    assert peaks(heights, noise) == count


def test_what_is_not_measured_here_is_refused() -> None:
    for plan in (Plan(on="sim:a100"), Plan(use=("Replicas(copies=2)",))):
        with pytest.raises(SpecError, match="is not measured"):
            Tuning(plan=plan, load=LOAD)


def test_the_verb_measures_a_model_and_writes_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PROMISING", 2), ("SPREAD", 1), ("FINALISTS", 1), ("TURNS", 1), ("ROUNDS", 1)):
        monkeypatch.setattr(tuning_module, name, value)
    monkeypatch.setattr(tuning_module, "MAX_SEQS", (1, 16))
    file = tmp_path / "plan.toml"
    load = "Burst(num_requests=12, lengths=Lognormal(prompt=40, output=24))"
    assert main(["tune", "tiny:llama", "--load", load, "--save", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["unit"] == "tokens/s"
    assert len(told["trials"]) == 5  # the default, with one thread and with two, among them
    plan = tomllib.loads(file.read_text())
    assert plan["model"] == "tiny:llama"
    assert {"use", "max_seqs", "threads"} <= plan.keys()
