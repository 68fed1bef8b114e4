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

from collections.abc import Mapping
from math import log, pi
from typing import Any, Literal

import numpy as np

from lightwork.errors import RangeError
from lightwork.kernels.truncated import NOTHING, Found, best, joint_slabs, slabs, states
from lightwork.learn.schedules import Schedule
from lightwork.learn.shards import Sums
from lightwork.learn.sparse.covariances import coloured, log_root, positive, residual, scatter, whitened
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
from lightwork.runtime.progress import Progress


class GSC(SparseCoder):
    """See SparseCoder. noise: scalar, diagonal or full, Sigma. strengths: diagonal or full, Psi.

    prior_: [H], how often each unit is on. means_, variances_ [H]: of its strength; of full strengths the
    covariance [H, H]. noise_: sigma; of diagonal noise one for each number [D], of full noise the covariance
    [D, D]. Above T = 1, full noise is apt to take all that varies for noise: give temperature=1.0.
    """

    def __init__(
        self,
        n_components: int = 8,
        *,
        noise: Literal["scalar", "diagonal", "full"] = "scalar",
        strengths: Literal["diagonal", "full"] = "diagonal",
        n_candidates: int | None = None,
        n_active: int | None = None,
        max_iter: int = 50,
        temperature: Schedule | None = None,
        cut: Schedule = ((0.0, 0.0), (0.66, 1.0)),
        partial: Schedule = 1.0,
        jitter: Mapping[str, Schedule] | None = None,
        n_jobs: int = 1,
        random_state: Any = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(
            n_components, n_candidates=n_candidates, n_active=n_active, max_iter=max_iter,
            temperature=temperature, cut=cut, partial=partial, jitter=jitter, n_jobs=n_jobs,
            random_state=random_state, progress=progress,
        )  # fmt: skip
        self.noise = noise
        self.strengths = strengths

    def _start(self, X: Floats, rng: np.random.RandomState) -> Params:
        """Raises RangeError for a noise or strengths of another form."""
        if self.noise not in ("scalar", "diagonal", "full") or self.strengths not in ("diagonal", "full"):
            raise RangeError(
                f"noise={self.noise!r}, strengths={self.strengths!r}",
                expected="noise scalar, diagonal or full; strengths diagonal or full",
            )
        units, dimensions = self.n_components, X.shape[1]
        W, sigma = start_components(X, units, rng)
        forms = {"diagonal": np.full(dimensions, sigma), "full": sigma**2 * np.eye(dimensions)}
        psi = np.full(units, 0.25)
        return {
            "W": W,
            "sigma": forms.get(self.noise, sigma),
            "prior": np.full(units, 1.0 / (units + 1)),
            "mu": np.ones(units),
            "psi": np.diag(psi) if self.strengths == "full" else psi,
        }

    def _active_rate(self, params: Params) -> float:
        return float(params["prior"].mean())

    def _local(self, params: Params, Y: Floats, knobs: Knobs, found: Found = NOTHING) -> Local:
        sigma, dimensions = params["sigma"], Y.shape[1]
        W, scaled = (whitened(rows, sigma) * knobs.beta**0.5 for rows in (params["W"], Y))
        inner, gram, units = scaled @ W.T, W @ W.T, self.n_components
        mean, psi, prior = params["mu"], params["psi"], params["prior"]
        ratio_H = knobs.beta_prior * (np.log(prior) - np.log1p(-prior))
        variances = np.diag(psi) if psi.ndim == 2 else psi
        chosen = best(_alone(inner, np.diag(gram), mean, variances, ratio_H), knobs.candidates)
        means, evidence = np.zeros_like(inner), np.empty(len(Y))
        names, shapes = ("active", "squares", "cross", "pairs"), ((units,), *[(units, units)] * 3)
        sums: dict[str, Any] = {name: np.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
        table, stats = states(knobs.candidates, knobs.gamma, 1), (means, *sums.values())
        if psi.ndim == 2:
            joint_slabs(inner, gram, mean, psi, ratio_H, chosen, table, stats, evidence, found)
        else:
            slabs(inner, gram, mean, np.sqrt(psi), ratio_H, chosen, table, stats, evidence, found)
        constant = knobs.beta_prior * np.log1p(-prior).sum() - log_root(sigma, dimensions)
        constant += 0.5 * dimensions * log(knobs.beta / (2 * pi))
        evidence += constant - 0.5 * np.einsum("nd,nd->n", scaled, scaled)
        sums |= {"outer": means.T @ Y, "means": means.sum(0)}
        if sigma.ndim > 0:
            sums["scatter"] = scatter(Y, sigma)
        return Local(sums, evidence, means, chosen)

    def _update(self, params: Params, total: Sums, knobs: Knobs) -> Params:
        kept, active, squares = float(total["kept"]), total["active"], total["squares"]
        W = solved(squares, total["outer"])
        dead = active < DEAD * kept
        W[dead] = params["W"][dead]
        mu = np.where(dead, params["mu"], total["means"] / np.maximum(active, LEAST * LEAST))
        prior = np.clip(active / kept, LEAST, 1 - LEAST)
        psi, sigma = self._update_psi(params["psi"], mu, total), residual(params["sigma"], W, total, LEAST**2)
        return {"W": W, "sigma": sigma, "prior": prior, "mu": mu, "psi": psi}

    def _update_psi(self, psi: Floats, mu: Floats, total: Sums) -> Floats:
        pairs, cross = total["pairs"], total["cross"] * mu
        spread = total["squares"] - cross - cross.T + np.outer(mu, mu) * pairs
        seen = pairs >= DEAD * float(total["kept"])
        if psi.ndim == 1:
            spread, pairs, seen = np.diag(spread), np.diag(pairs), np.diag(seen)
        new: Floats = np.where(seen, spread / np.where(seen, pairs, 1.0), psi)
        return np.maximum(new, LEAST) if psi.ndim == 1 else positive(new, LEAST)

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
