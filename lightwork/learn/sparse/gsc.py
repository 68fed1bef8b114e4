"""Gaussian sparse coding: a unit is off, or on with a normally distributed strength (spike and slab).

    p(s_h = 1) = pi_h      p(z) = N(z; mu, Psi)      p(y | s, z) = N(y; sum_h s_h z_h W_h, Sigma)

With <.> the expectation over states and strengths, sums over rows, and o and / by element:

    W = (sum y <sz>^T) (sum <sz sz^T>)^-1          pi_h = mean <s_h>           mu = sum <sz> / sum <s>
    Psi = (sum <sz sz^T> - R - R^T + (mu mu^T) o sum <ss^T>) / sum <ss^T>,    R = sum <sz s^T> diag(mu)
    Sigma = (sum y y^T - W sum <sz sz^T> W^T) / N

of which strengths="diagonal" keeps the diagonal of Psi, noise="diagonal" that of Sigma, "scalar" its mean. A
full Psi is the nearest one without negative variances; it need not be the best, so the free energy may fall.

Source: Sheikh, Shelton and Lücke, "A Truncated EM Approach for Spike-and-Slab Sparse Coding" (JMLR 15, 2014),
equations 8 to 20.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import Any, Literal

import numpy as np

from lightwork.kernels.truncated import NOTHING, Found, best, slabs, states
from lightwork.learn.shards import Sums
from lightwork.learn.sparse import covariances
from lightwork.learn.sparse.covariances import coloured, log_root, positive, whitened
from lightwork.learn.sparse.truncated_em import (
    DEAD,
    LEAST,
    Floats,
    Knobs,
    Local,
    Params,
    SparseCoder,
    solved,
    start_components,
)


@dataclass(eq=False, repr=False, kw_only=True)
class GSC(SparseCoder):
    """See SparseCoder. noise: scalar, diagonal or full, Sigma. strengths: diagonal or full, Psi.

    prior_: [H], how often each unit is on. means_, variances_ [H]: of its strength; of full strengths the
    covariance [H, H]. noise_: sigma; of diagonal noise one for each number [D], of full noise the covariance
    [D, D]. Above T = 1, full noise is apt to take all that varies for noise: give temperature=1.0.
    """

    noise: Literal["scalar", "diagonal", "full"] = "scalar"
    strengths: Literal["diagonal", "full"] = "diagonal"

    def _start(self, X: Floats, rng: np.random.RandomState) -> Params:
        units = self.n_components
        W, sigma = start_components(X, units, rng)
        return {
            "W": W,
            "sigma": covariances.noise_of(self.noise, sigma, X.shape[1]),
            "prior": np.full(units, 1.0 / (units + 1)),
            "mu": np.ones(units),
            "psi": covariances.strengths_of(self.strengths, 0.25, units),
        }

    def _active_rate(self, params: Params) -> float:
        return float(params["prior"].mean())

    def _local(self, params: Params, Y: Floats, knobs: Knobs, found: Found = NOTHING) -> Local:
        sigma, mean, psi, prior = (params[name] for name in ("sigma", "mu", "psi", "prior"))
        W, scaled = (whitened(rows, sigma) * knobs.beta**0.5 for rows in (params["W"], Y))
        inner, gram, dimensions = scaled @ W.T, W @ W.T, Y.shape[1]
        ratio_H = knobs.beta_prior * (np.log(prior) - np.log1p(-prior))
        variances = np.diag(psi) if psi.ndim == 2 else psi
        chosen = best(_alone(inner, np.diag(gram), mean, variances, ratio_H), knobs.candidates)
        means, evidence = np.zeros_like(inner), np.empty(len(Y))
        sums: dict[str, Any] = {"active": np.zeros(len(W))}
        sums |= {name: np.zeros_like(gram) for name in ("squares", "cross", "pairs")}
        table = states(knobs.candidates, knobs.gamma, 1)
        slabs(inner, gram, mean, psi, ratio_H, chosen, table, (means, *sums.values()), evidence, found)
        constant = knobs.beta_prior * np.log1p(-prior).sum() - log_root(sigma, dimensions)
        constant += 0.5 * dimensions * log(knobs.beta / (2 * pi))
        evidence += constant - 0.5 * np.einsum("nd,nd->n", scaled, scaled)
        sums |= {"outer": means.T @ Y, "means": means.sum(0)}
        if sigma.ndim > 0:
            sums["scatter"] = covariances.scatter(Y, sigma)
        return Local(sums, evidence, means, chosen)

    def _update(self, params: Params, total: Sums, knobs: Knobs) -> Params:
        kept, active = float(total["kept"]), total["active"]
        W, dead = solved(total["squares"], total["outer"]), active < DEAD * kept
        W[dead] = params["W"][dead]
        mu = np.where(dead, params["mu"], total["means"] / np.maximum(active, LEAST * LEAST))
        return {
            "W": W,
            "sigma": covariances.noise_left(params["sigma"], W, total, LEAST**2),
            "prior": np.clip(active / kept, LEAST, 1 - LEAST),
            "mu": mu,
            "psi": covariances.strengths_left(params["psi"], mu, total, DEAD, LEAST),
        }

    def _within_bounds(self, params: Params) -> Params:
        sigma, bounded = params["sigma"], super()._within_bounds(params)
        return bounded if sigma.ndim < 2 else {**bounded, "sigma": positive(sigma, LEAST**2)}

    def _learned(self, params: Params) -> None:
        super()._learned(params)
        self.means_, self.variances_ = params["mu"], params["psi"]

    def _draw(self, num: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
        size = (num, self.n_components)
        on = rng.random_sample(size) < self.prior_
        spread = self.variances_ if self.strengths == "full" else np.sqrt(self.variances_)
        units = on * (self.means_ + coloured(rng.standard_normal(size), spread))
        return units @ self.components_, units


def _alone(inner_NH: Floats, size_H: Floats, mean_H: Floats, psi_H: Floats, ratio_H: Floats) -> Floats:
    """Score of each unit alone [N, H]. size_H: |W_h|² where noise is white."""
    volume = 1.0 + psi_H * size_H
    moved = mean_H * (mean_H * size_H - 2 * inner_NH) - psi_H * (inner_NH - size_H * mean_H) ** 2 / volume
    result: Floats = ratio_H - 0.5 * (np.log(volume) + moved)
    return result
