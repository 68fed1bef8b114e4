"""Roots in vector code are those of numpy."""

from __future__ import annotations

import numpy as np
import pytest

from lightwork.kernels.truncated_loops import _roots


@pytest.mark.parametrize("rho", [1.25, 6.0, 21.0, 35.0])
def test_roots_are_numpys(rho: float) -> None:
    rng = np.random.default_rng(0)
    t = np.exp(rng.uniform(-600, 300, 3001)) * rng.choice([-1.0, 1.0], 3001)
    t[:6] = [0.0, 1.0, -1.0, np.sqrt(2.0), np.nextafter(np.sqrt(2.0), 2.0), np.sqrt(0.5)]
    found = np.empty_like(t)
    _roots(t, 1 / rho, found)
    np.testing.assert_allclose(found, np.sign(t) * np.abs(t) ** (1 / rho), rtol=3e-13)
