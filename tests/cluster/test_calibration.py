"""A calibration recovers known costs, resists outliers, and predicts loads it has not seen."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.cluster.calibration import KNEES, MIN_PER_PIECE, Calibration, fit
from lightwork.errors import LightworkError, SpecError

TRUE = {"constant": 2e-3, "rows": 3e-5, "read": 4e-8}


def samples(num: int, seed: int, noise: float = 0.0, most: int = 200) -> list[tuple[dict[str, float], float]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        rows = float(rng.integers(1, most))
        features = {"constant": 1.0, "rows": rows, "read": rows * float(rng.integers(1, 2000))}
        seconds = sum(TRUE[name] * value for name, value in features.items())
        made.append((features, seconds * float(np.exp(noise * rng.standard_normal()))))
    return made


def median_error(calibration: Calibration, held_out: list[tuple[dict[str, float], float]]) -> float:
    return float(np.median([abs(calibration.predict(f) / s - 1) for f, s in held_out]))


def test_known_costs_are_recovered():
    calibration = fit(samples(200, 0))
    assert calibration.error < 1e-6
    for piece in calibration.pieces:
        assert piece.seconds == pytest.approx(TRUE, rel=1e-3)


def test_held_out_loads_are_predicted_within_the_noise():
    assert median_error(fit(samples(400, 1, noise=0.1)), samples(200, 2)) < 0.05


def test_outliers_do_not_bend_the_fit():
    """One step in ten is five times as slow: another process ran."""
    made = [(f, s * (5 if i % 10 == 0 else 1)) for i, (f, s) in enumerate(samples(400, 3, noise=0.02))]
    assert median_error(fit(made), samples(200, 4)) < 0.03


def test_costs_are_never_negative():
    rng = np.random.default_rng(5)
    made = [({"rows": float(r), "noise": float(rng.random())}, 1e-3 * r) for r in range(1, 100)]
    assert all(cost >= 0 for piece in fit(made).pieces for cost in piece.seconds.values())


def test_small_and_large_steps_may_cost_differently():
    knee = 64
    made = []
    for rows in [r for r in range(1, 256) for _ in range(2)]:
        seconds = 1e-3 if rows <= knee else 5e-4 + 2e-5 * rows
        made.append(({"constant": 1.0, "rows": float(rows)}, seconds))
    calibration = fit(made)
    assert len(calibration.pieces) > 1
    assert {p.upto for p in calibration.pieces[:-1]} <= set(KNEES)
    assert median_error(calibration, made) < 0.03


@given(num=st.integers(MIN_PER_PIECE, 60), most=st.integers(2, 3000), seed=st.integers(0, 99))
def test_json_gives_a_calibration_back(num: int, most: int, seed: int):
    calibration = fit(samples(num, seed, most=most), machine="two cores")
    back = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert back == calibration
    rows = [p.upto for p in calibration.pieces]
    assert rows == sorted(set(rows))


def test_too_few_steps_and_foreign_files_are_refused():
    with pytest.raises(LightworkError, match="too few"):
        fit(samples(MIN_PER_PIECE - 1, 0))
    with pytest.raises(SpecError, match="not a calibration"):
        Calibration.from_dict({"pieces": [{}]})
