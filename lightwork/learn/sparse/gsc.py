"""Gaussian sparse coding: a unit is off, or on with a normally distributed strength (spike and slab).

    p(s_h = 1) = pi_h      z_h ~ N(mu_h, psi_h)      p(y | s, z) = N(y; sum_h s_h z_h W_h, diag(sigma²))

With <.> the expectation over states and strengths, sums over rows, and o the product of elements:

    W = (sum y <sz>^T) (sum <sz sz^T>)^-1          pi_h = mean <s_h>           mu = sum <sz> / sum <s>
    psi = diag(sum <sz sz^T> - R - R^T + (mu mu^T) o sum <ss^T>) / sum <s>,    R = sum <sz s^T> diag(mu)
    sigma² = diag(sum y y^T - W sum <sz sz^T> W^T) / N                         its mean where noise="scalar"

Source: Sheikh, Shelton and Lücke, "A Truncated EM Approach for Spike-and-Slab Sparse Coding" (JMLR 15, 2014),
equations 8 to 20.
"""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.kernels.truncated import NOTHING, Found, best, slabs, states
from lightwork.learn.shards import Sums
from lightwork.learn.sparse.truncated_em import (
    LEAST,
    Floats,
    Knobs,
    Local,
    Params,
    SparseCoder,
    start_components,
)


class GSC(SparseCoder):
    """See SparseCoder. prior_: [H], how often each unit is on. means_, variances_ [H]: of its strength."""

    def _start(self, X: Floats, rng: np.random.RandomState) -> Params:
        units = self.n_components
        W, sigma = start_components(X, units, rng)
        prior = np.full(units, 1.0 / (units + 1))
        return {"W": W, "sigma": sigma, "prior": prior, "mu": np.ones(units), "psi": np.full(units, 0.25)}

    def _active_rate(self, params: Params) -> float:
        return float(params["prior"].mean())

    def _local(
        self, params: Params, Y: Floats, knobs: Knobs, keep: NDArray[np.bool_], found: Found = NOTHING
    ) -> Local:
        sigma, units = float(params["sigma"]) / knobs.beta**0.5, self.n_components
        W = params["W"] / sigma
        scaled = Y.astype(np.float64) / sigma
        inner, gram = scaled @ W.T, W @ W.T
        mean, root, prior = params["mu"], np.sqrt(params["psi"]), params["prior"]
        ratio_H = knobs.beta_prior * (np.log(prior) - np.log1p(-prior))
        size = 1.0 + root**2 * np.diag(gram)
        off = inner - np.diag(gram) * mean
        single = ratio_H - 0.5 * (
            np.log(size) + mean * (mean * np.diag(gram) - 2 * inner) - (root * off) ** 2 / size
        )
        chosen = best(single, knobs.candidates)
        means, evidence = np.zeros_like(inner), np.empty(len(Y))
        names, shapes = ("active", "squares", "cross", "pairs"), ((units,), *[(units, units)] * 3)
        sums: dict[str, Any] = {name: np.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
        table = states(knobs.candidates, knobs.gamma, 1)
        stats = (means, *sums.values())
        slabs(inner, gram, mean, root, ratio_H, 1.0, chosen, table, keep, stats, evidence, found)
        constant = -0.5 * Y.shape[1] * log(2 * pi * sigma**2) + knobs.beta_prior * float(
            np.log1p(-prior).sum()
        )
        evidence += constant - 0.5 * np.einsum("nd,nd->n", scaled, scaled)
        return Local({"outer": means.T @ Y, "means": means.sum(0), **sums}, evidence, means, chosen)

    def _update(self, params: Params, total: Sums, knobs: Knobs) -> Params:
        kept, active, squares = float(total["kept"]), total["active"], total["squares"]
        outer = total["outer"]
        W = np.linalg.lstsq(squares, outer, rcond=None)[0]
        dead = active < 1e-8 * kept
        W[dead] = params["W"][dead]
        mu = np.where(dead, params["mu"], total["means"] / np.maximum(active, LEAST * LEAST))
        spread = np.diag(squares) - 2 * np.diag(total["cross"]) * mu + mu**2 * np.diag(total["pairs"])
        psi = np.where(dead, params["psi"], spread / np.maximum(active, LEAST * LEAST))
        left = float(total["square"]) - 2 * np.sum(W * outer) + np.sum((W @ W.T) * squares)
        sigma = np.sqrt(max(left / (outer.shape[1] * kept), LEAST**2))
        prior = np.clip(active / kept, LEAST, 1 - LEAST)
        return {"W": W, "sigma": np.float64(sigma), "prior": prior, "mu": mu, "psi": np.maximum(psi, LEAST)}

    def _learned(self, params: Params) -> None:
        super()._learned(params)
        self.means_, self.variances_ = params["mu"], params["psi"]

    def _draw(self, num: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
        size = (num, self.n_components)
        on = rng.random_sample(size) < self.prior_
        units = on * (self.means_ + np.sqrt(self.variances_) * rng.standard_normal(size))
        return units @ self.components_, units
