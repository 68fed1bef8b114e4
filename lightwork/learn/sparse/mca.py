"""Maximal causes analysis: what is seen is the largest of the active units' components, which are positive.

    p(s_h = 1) = pi      p(y | s) = N(y; max_h s_h W_h, sigma² I)

The maximum is smooth: m_d = (sum_h s_h W_hd^rho)^(1/rho), rho = 1 / (1 - 1 / T), T at least 1.05.
With A_hd = s_h (W_hd / m_d)^(rho - 1), a unit's share of what is seen:

    W = sum <A> y / sum <A>, element by element        sigma² = sum <|y - m|²> / (D N_use)        pi as in BSC

Candidates are the units that a row has room for: smallest sum_d max(W_hd - y_d, 0). Temperature acts on the
prior, too.

Source: Lücke and Sahani, "Maximal Causes for Non-linear Component Extraction" (JMLR 9, 2008), equations 15
and 28.
"""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np

from lightwork.kernels.truncated import NOTHING, Found, best, maxima, room, states
from lightwork.learn.shards import Sums
from lightwork.learn.sparse.truncated_em import (
    LEAST,
    Floats,
    Knobs,
    Local,
    Params,
    SparseCoder,
    corrected_rate,
    log_empty,
    start_components,
)

FLOOR = 1e-4
"""Of components: none is zero, so each has a sign and a share."""


class MCA(SparseCoder):
    """See SparseCoder. prior_: [1], pi."""

    anneal_prior = True
    coolest = 1.05

    def _start(self, X: Floats, rng: np.random.RandomState) -> Params:
        W, sigma = start_components(X, self.n_components, rng)
        return {"W": self._allowed(W), "sigma": sigma, "prior": np.array([1.0 / (self.n_components + 1)])}

    def _allowed(self, W: Floats) -> Floats:
        result: Floats = np.maximum(W, FLOOR)
        return result

    def _within_bounds(self, params: Params) -> Params:
        return {**super()._within_bounds(params), "W": self._allowed(params["W"])}

    def _select(self, Y: Floats, W: Floats) -> Floats:
        """Score of each unit for each row [N, H]."""
        result: Floats = -room(Y, W)
        return result

    def _local(self, params: Params, Y: Floats, knobs: Knobs, found: Found = NOTHING) -> Local:
        W, rate, rho = params["W"], float(params["prior"][0]), self._rho(knobs)
        scale = np.abs(W).max()
        unit_W, unit_Y = W / scale, Y.astype(np.float64) / scale  # so that no power overflows
        power = np.sign(W) * np.abs(unit_W) ** rho
        precision = knobs.beta * (scale / float(params["sigma"])) ** 2
        prior = knobs.beta_prior * (log(rate) - log(1 - rate))
        chosen = best(self._select(Y, W), knobs.candidates)
        weight, outer = np.zeros_like(W), np.zeros_like(W)
        means, evidence = np.zeros((len(Y), len(W))), np.empty(len(Y))
        table = states(knobs.candidates, knobs.gamma, 1)
        left = maxima(
            unit_Y, power, unit_W, rho, prior, precision, chosen, table, weight, outer, means, evidence,
            found,
        )  # fmt: skip
        evidence += log_empty(Y, params, knobs, self.n_components * log(1 - rate))
        sums: dict[str, Any] = {
            "weight": weight,
            "outer": outer * scale,
            "left": np.float64(left * scale**2),
            "active": means.sum(),
        }
        return Local(sums, evidence, means, chosen)

    def _rho(self, knobs: Knobs) -> float:
        return 1.0 / (1.0 - min(knobs.beta, 1.0 / self.coolest))

    def _update(self, params: Params, total: Sums, knobs: Knobs) -> Params:
        kept, W = float(total["kept"]), self._update_components(params["W"], total)
        sigma: Any = np.sqrt(max(float(total["left"]) / (W.shape[1] * kept), LEAST**2))
        rate = float(params["prior"][0])
        rate = corrected_rate(self.n_components, knobs.gamma, rate, float(total["active"]) / kept)
        return {"W": W, "sigma": sigma, "prior": np.array([rate])}

    def _update_components(self, W: Floats, total: Sums) -> Floats:
        seen = total["weight"] > LEAST * LEAST
        return self._allowed(np.where(seen, total["outer"] / np.where(seen, total["weight"], 1.0), W))

    def _draw(self, num: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
        units = (rng.random_sample((num, self.n_components)) < self.prior_).astype(float)
        shown = units[:, :, None] * self.components_
        largest = np.abs(shown).argmax(1)[:, None]
        return np.take_along_axis(shown, largest, 1)[:, 0], units
