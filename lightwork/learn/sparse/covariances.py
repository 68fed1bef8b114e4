"""Noise and strengths of several forms, which shapes tell.

sigma, the noise: a deviation (), one for each number [D], or a covariance [D, D]. psi, of strengths:
variances [H], or a covariance [H, H].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import RangeError
from lightwork.learn.shards import Sums

Floats = NDArray[Any]


def noise_of(form: str, deviation: Floats, dimensions: int) -> Floats:
    """Noise of this form, all numbers alike. Raises RangeError for another form."""
    match form:
        case "scalar":
            return deviation
        case "diagonal":
            return np.full(dimensions, deviation)
        case "full":
            result: Floats = deviation**2 * np.eye(dimensions)
            return result
    raise RangeError(f"noise={form!r}", expected="scalar, diagonal or full")


def strengths_of(form: str, variance: float, units: int) -> Floats:
    """Strengths of this form, all units alike. Raises RangeError for another form."""
    if form not in ("diagonal", "full"):
        raise RangeError(f"strengths={form!r}", expected="diagonal or full")
    variances = np.full(units, variance)
    return np.diag(variances) if form == "full" else variances


def coloured(white: Floats, spread: Floats) -> Floats:
    """Normal numbers [N, D] of what deviations, or of what covariance [D, D]; white: of deviation 1."""
    result: Floats = white @ np.linalg.cholesky(spread).T if np.ndim(spread) == 2 else spread * white
    return result


def whitened(rows: Floats, sigma: Floats) -> Floats:
    """Rows [N, D] in which noise is white. sigma: deviations, or a covariance."""
    if sigma.ndim < 2:
        return rows.astype(np.float64, copy=False) / sigma
    result: Floats = np.linalg.solve(np.linalg.cholesky(sigma), rows.T.astype(np.float64)).T
    return np.ascontiguousarray(result)


def log_root(sigma: Floats, dimensions: int) -> float:
    """log |Sigma| / 2."""
    roots = np.diag(np.linalg.cholesky(sigma)) if sigma.ndim == 2 else np.broadcast_to(sigma, dimensions)
    return float(np.log(roots).sum())


def positive(matrix: Floats, least: float) -> Floats:
    """The nearest symmetric matrix whose eigenvalues are at least so large, and large enough for a factor."""
    sizes, directions = np.linalg.eigh((matrix + matrix.T) / 2)
    result: Floats = (directions * np.maximum(sizes, max(least, 1e-10 * sizes[-1]))) @ directions.T
    return result


def scatter(rows: Floats, sigma: Floats) -> Floats:
    """sum y y^T of rows [N, D], or its diagonal where sigma is no covariance."""
    rows = rows.astype(np.float64, copy=False)
    result: Floats = rows.T @ rows if sigma.ndim == 2 else np.square(rows).sum(0)
    return result


def noise_left(sigma: Floats, W: Floats, total: Sums, least: float) -> Floats:
    """The noise that components W [H, D] leave, in the form of the one before; variances of at least so much.

    total: of the rows kept, square (sum |y|²) or scatter, outer (sum <s> y^T) and squares (sum <s s^T>).
    """
    kept, outer, squares = float(total["kept"]), total["outer"], total["squares"]
    if sigma.ndim == 2:
        shared = outer.T @ W
        return positive((total["scatter"] - shared - shared.T + W.T @ squares @ W) / kept, least)
    left = -2 * np.sum(W * outer, 0) + np.sum(W * (squares @ W), 0)
    if sigma.ndim == 1:
        spread: Floats = (total["scatter"] + left) / kept
    else:
        spread = np.array((float(total["square"]) + left.sum()) / (kept * len(left)))
    result: Floats = np.sqrt(np.maximum(spread, least))
    return result


def strengths_left(psi: Floats, mu: Floats, total: Sums, dead: float, least: float) -> Floats:
    """How strengths vary about mu [H], in the form of psi; variances of at least so much.

    total: of the rows kept, squares (sum <sz sz^T>), cross (sum <sz s^T>) and pairs (sum <s s^T>). Units that
    are expected together in fewer rows than dead times those keep what they had.
    """
    pairs, cross = total["pairs"], total["cross"] * mu
    spread = total["squares"] - cross - cross.T + np.outer(mu, mu) * pairs
    if psi.ndim == 1:
        spread, pairs = np.diag(spread), np.diag(pairs)
    seen = pairs >= dead * float(total["kept"])
    new: Floats = np.where(seen, spread / np.where(seen, pairs, 1.0), psi)
    return np.maximum(new, least) if psi.ndim == 1 else positive(new, least)
