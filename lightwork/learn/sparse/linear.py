"""What models have in common whose active units' components add up.

With <.> the expectation over a row's states and sums over the rows that are kept:

    W      = (sum y <s>^T) (sum <s s^T>)^-1
    sigma² = (sum |y|² - 2 tr(W^T sum y <s>^T) + tr(W^T W sum <s s^T>)) / (D N_use), with the new W

Source: Lücke and Eggert (JMLR 11, 2010), equations 13 to 18; Exarchakis and Lücke (2017) for other values.
"""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np

from lightwork.kernels.truncated import NOTHING, Found, best, linear, states
from lightwork.learn.shards import Sums
from lightwork.learn.sparse.truncated_em import (
    DEAD,
    LEAST,
    Floats,
    Knobs,
    Local,
    Params,
    SparseCoder,
    corrected_rate,
    log_empty,
    solved,
    start_components,
)


class Linear(SparseCoder):
    """params: prior [V] is the probability of each value but zero."""

    def _start(self, X: Floats, rng: np.random.RandomState) -> Params:
        W, sigma = start_components(X, self.n_components, rng)
        values = self._values()
        return {
            "W": W,
            "sigma": sigma,
            "prior": np.full(len(values), 1.0 / (self.n_components * len(values) + 1)),
        }

    def _select(self, inner_NH: Floats, params: Params, gains_HV: Floats, knobs: Knobs) -> Floats:
        """Score of each unit alone, by its best value [N, H]."""
        values = self._values()
        singles = [v * inner_NH + gains_HV[:, k] for k, v in enumerate(values)]
        result: Floats = np.maximum.reduce(singles)
        return result

    def _local(self, params: Params, Y: Floats, knobs: Knobs, found: Found = NOTHING) -> Local:
        values, W, prior = np.array(self._values()), params["W"], params["prior"]
        precision = knobs.beta / float(params["sigma"]) ** 2
        gram, inner = W @ W.T, Y.astype(np.float64, copy=False) @ W.T
        absent = float(1.0 - prior.sum())
        ratio_V = knobs.beta_prior * (np.log(prior) - log(absent))
        gains_HV = ratio_V / precision - 0.5 * values**2 * np.diag(gram)[:, None]
        chosen = best(self._select(inner, params, gains_HV, knobs), knobs.candidates)
        pairs, counts = np.zeros_like(gram), np.zeros(len(values))
        means, evidence = np.zeros_like(inner), np.empty(len(Y))
        table = states(knobs.candidates, knobs.gamma, len(values))
        linear(
            inner, gram, ratio_V, values, precision, chosen, table, means, pairs, counts,
            evidence, found,
        )  # fmt: skip
        evidence += log_empty(Y, params, knobs, self.n_components * log(absent))
        return Local({"outer": means.T @ Y, "pairs": pairs, "counts": counts}, evidence, means, chosen)

    def _update(self, params: Params, total: Sums, knobs: Knobs) -> Params:
        kept, outer, pairs = float(total["kept"]), total["outer"], total["pairs"]
        W = solved(pairs, outer)
        dead = np.diag(pairs) < DEAD * kept
        W[dead] = params["W"][dead]
        left = float(total["square"]) - 2 * np.sum(W * outer) + np.sum((W @ W.T) * pairs)
        sigma: Any = np.sqrt(
            max(left / (outer.shape[1] * kept), LEAST**2 * float(total["square"]) / kept, LEAST**2)
        )
        return {"W": W, "sigma": sigma, "prior": self._update_prior(params, total, knobs)}

    def _within_bounds(self, params: Params) -> Params:
        params = super()._within_bounds(params)
        return {**params, "prior": params["prior"] * min(1.0, (1.0 - LEAST) / params["prior"].sum())}

    def _update_prior(self, params: Params, total: Sums, knobs: Knobs) -> Floats:
        """By how many units are expected, all values alike."""
        rate, num = float(params["prior"].sum()), len(params["prior"])
        mean_active = float(total["counts"].sum() / total["kept"])
        return np.full(num, corrected_rate(self.n_components, knobs.gamma, rate, mean_active) / num)

    def _draw(self, num: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
        values, prior = (0.0, *self._values()), self.prior_
        chances = np.append(1.0 - prior.sum(), prior)
        units: Any = rng.choice(values, size=(num, self.n_components), p=chances)
        return units @ self.components_, units
