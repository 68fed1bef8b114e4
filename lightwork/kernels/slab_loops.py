"""The compiled loops of units with a normal strength. truncated.py says what they are given and write."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.truncated_loops import jit, tell, weigh


@jit
def slabs(
    inner_NH: Any, gram_HH: Any, mean_H: Any, root_H: Any, prior_H: Any, chosen_NP: Any,
    parent: Any, unit: Any, depth: Any, path: Any, means_NH: Any, active_H: Any,
    square_HH: Any, cross_HH: Any, pairs_HH: Any, evidence_N: Any, found: Any,
) -> None:  # fmt: skip
    num_states, gamma = path.shape
    single, score = np.empty(len(gram_HH)), np.empty(num_states)
    factor, half = np.empty((num_states, gamma, gamma)), np.empty((num_states, gamma))
    one, spread, kappa = np.empty((gamma, gamma)), np.empty((gamma, gamma)), np.empty(gamma)
    scaled_HH = root_H.reshape(-1, 1) * gram_HH * root_H
    for n in range(len(inner_NH)):
        chosen = chosen_NP[n]
        top = _slab_singles(inner_NH[n], gram_HH, mean_H, root_H, prior_H, single)
        for s in range(num_states):
            size, p = depth[s], parent[s]
            units = chosen[path[s, :size]]
            L, before = factor[s], factor[p]
            if p < 0:
                before = L
                L[0, 0] = np.sqrt(1.0 + scaled_HH[units[0], units[0]])
            _grow(before, L, scaled_HH, units)
            score[s] = _slab_score(inner_NH[n], gram_HH, mean_H, root_H, prior_H, units, L, half[s])
            top = max(top, score[s])
        total = weigh(single, score, top)
        evidence_N[n] = top + np.log(total)
        if len(found.active) > 0:
            tell(single.reshape(-1), score, np.exp(-top), total, chosen, depth, path, found, n)
            continue
        stats = (means_NH[n], active_H, square_HH, cross_HH, pairs_HH)
        for h in range(len(single)):
            if single[h] > 0.0:
                L = np.array([[np.sqrt(1.0 + scaled_HH[h, h])]])
                v = np.array([root_H[h] * (inner_NH[n, h] - gram_HH[h, h] * mean_H[h]) / L[0, 0]])
                units = np.array([h], dtype=chosen.dtype)
                _strengths(units, L, v, mean_H, root_H, one, spread, kappa)
                _count(single[h] / total, units, spread, kappa, *stats)
        for s in range(num_states):
            if score[s] > 0.0:
                units = chosen[path[s, : depth[s]]]
                _strengths(units, factor[s], half[s], mean_H, root_H, one, spread, kappa)
                _count(score[s] / total, units, spread, kappa, *stats)


@jit
def _slab_singles(b: Any, gram_HH: Any, mean_H: Any, root_H: Any, prior_H: Any, single: Any) -> Any:
    top = 0.0
    for h in range(len(single)):
        m = 1.0 + root_H[h] ** 2 * gram_HH[h, h]
        v = root_H[h] * (b[h] - gram_HH[h, h] * mean_H[h])
        moved = mean_H[h] * (mean_H[h] * gram_HH[h, h] - 2.0 * b[h])
        single[h] = prior_H[h] - 0.5 * (np.log(m) + moved - v * v / m)
        top = max(top, single[h])
    return top


@jit
def _grow(before: Any, L: Any, scaled_HH: Any, units: Any) -> None:
    """The Cholesky factor of a child: its parent's, and a row."""
    last = len(units) - 1
    for i in range(last):
        for j in range(i + 1):
            L[i, j] = before[i, j]
    rest = 1.0 + scaled_HH[units[last], units[last]]
    for i in range(last):
        value = scaled_HH[units[i], units[last]]
        for j in range(i):
            value -= L[i, j] * L[last, j]
        L[last, i] = value / L[i, i]
        rest -= L[last, i] ** 2
    L[last, last] = np.sqrt(rest)


@jit
def _slab_score(
    b: Any, gram_HH: Any, mean_H: Any, root_H: Any, prior_H: Any, units: Any, L: Any, half: Any
) -> Any:
    """Relative to the empty state; half becomes L^-1 v."""
    quadratic = moved = log_prior = 0.0
    determinant = 1.0
    for i in range(len(units)):
        h = units[i]
        shared = 0.0
        for g in units:
            shared += gram_HH[h, g] * mean_H[g]
        half[i] = root_H[h] * (b[h] - shared)
        moved += mean_H[h] * (shared - 2.0 * b[h])
        log_prior += prior_H[h]
        for j in range(i):
            half[i] -= L[i, j] * half[j]
        half[i] /= L[i, i]
        quadratic += half[i] ** 2
        determinant *= L[i, i]
    return log_prior - 0.5 * (2.0 * np.log(determinant) + moved - quadratic)


@jit
def _strengths(
    units: Any, L: Any, half: Any, mean_H: Any, root_H: Any, one: Any, spread: Any, kappa: Any
) -> None:
    """one = L^-1, and the strengths' means, mean + root one^T half, and covariance, root one^T one root."""
    size = len(units)
    for k in range(size):
        for i in range(k, size):
            value = 1.0 if i == k else 0.0
            for j in range(k, i):
                value -= L[i, j] * one[j, k]
            one[i, k] = value / L[i, i]
    for i in range(size):
        value = 0.0
        for k in range(i, size):
            value += one[k, i] * half[k]
        kappa[i] = mean_H[units[i]] + root_H[units[i]] * value
        for j in range(i + 1):
            inverse = 0.0
            for k in range(i, size):
                inverse += one[k, i] * one[k, j]
            spread[i, j] = spread[j, i] = root_H[units[i]] * root_H[units[j]] * inverse


@jit
def _count(
    q: Any, units: Any, spread: Any, kappa: Any, means: Any, active_H: Any, square_HH: Any, cross_HH: Any,
    pairs_HH: Any,
) -> None:  # fmt: skip
    size = len(units)
    for i in range(size):
        h = units[i]
        means[h] += q * kappa[i]
        active_H[h] += q
        for j in range(size):
            g = units[j]
            square_HH[h, g] += q * (kappa[i] * kappa[j] + spread[i, j])
            cross_HH[h, g] += q * kappa[i]
            pairs_HH[h, g] += q


# -- strengths that vary together


@jit
def joint_slabs(
    inner_NH: Any, gram_HH: Any, mean_H: Any, psi_HH: Any, prior_H: Any, chosen_NP: Any, depth: Any,
    path: Any, means_NH: Any, active_H: Any, square_HH: Any, cross_HH: Any,
    pairs_HH: Any, evidence_N: Any, found: Any,
) -> None:  # fmt: skip
    num_states, gamma = path.shape
    num_units = len(gram_HH)
    single, score = np.empty(num_units), np.empty(num_states)
    spread, kappa = np.empty((num_states, gamma, gamma)), np.empty((num_states, gamma))
    one, strength = np.empty((num_units, 1, 1)), np.empty((num_units, 1))
    left, rest = np.empty((gamma, gamma)), np.empty(gamma)
    model = (gram_HH, mean_H, psi_HH, prior_H)
    for n in range(len(inner_NH)):
        chosen, b = chosen_NP[n], inner_NH[n]
        top = 0.0
        for h in range(num_units):
            units = np.array([h], dtype=chosen.dtype)
            single[h] = _joint_score(b, *model, units, left, rest, one[h], strength[h])
            top = max(top, single[h])
        for s in range(num_states):
            units = chosen[path[s, : depth[s]]]
            score[s] = _joint_score(b, *model, units, left, rest, spread[s], kappa[s])
            top = max(top, score[s])
        total = weigh(single, score, top)
        evidence_N[n] = top + np.log(total)
        if len(found.active) > 0:
            tell(single, score, np.exp(-top), total, chosen, depth, path, found, n)
            continue
        stats = (means_NH[n], active_H, square_HH, cross_HH, pairs_HH)
        for h in range(num_units):
            if single[h] > 0.0:
                units = np.array([h], dtype=chosen.dtype)
                _count(single[h] / total, units, one[h], strength[h], *stats)
        for s in range(num_states):
            if score[s] > 0.0:
                _count(score[s] / total, chosen[path[s, : depth[s]]], spread[s], kappa[s], *stats)


@jit
def _joint_score(
    b: Any, gram_HH: Any, mean_H: Any, psi_HH: Any, prior_H: Any, units: Any, left: Any, rest: Any,
    spread: Any, kappa: Any,
) -> Any:  # fmt: skip
    """Relative to the empty state; spread becomes the strengths' covariance, kappa their means."""
    size = len(units)
    for i in range(size):
        for j in range(size):
            spread[i, j] = psi_HH[units[i], units[j]]
            left[i, j] = 1.0 if i == j else 0.0
            for k in range(size):
                left[i, j] += psi_HH[units[i], units[k]] * gram_HH[units[k], units[j]]
    determinant = _solve(left, spread, size)
    moved = quadratic = log_prior = 0.0
    for i in range(size):
        h = units[i]
        shared = 0.0
        for g in units:
            shared += gram_HH[h, g] * mean_H[g]
        moved += mean_H[h] * (shared - 2.0 * b[h])
        log_prior += prior_H[h]
        rest[i] = b[h] - shared
    for i in range(size):
        gain = 0.0
        for j in range(size):
            gain += spread[i, j] * rest[j]
        quadratic += gain * rest[i]
        kappa[i] = mean_H[units[i]] + gain
    return log_prior - 0.5 * (np.log(determinant) + moved - quadratic)


@jit
def _solve(A: Any, B: Any, size: Any) -> Any:
    """B = A^-1 B by elimination; returns |A|, which is positive here."""
    determinant = 1.0
    for k in range(size):
        most = k
        for i in range(k + 1, size):
            if abs(A[i, k]) > abs(A[most, k]):
                most = i
        for j in range(size):
            A[k, j], A[most, j] = A[most, j], A[k, j]
            B[k, j], B[most, j] = B[most, j], B[k, j]
        determinant *= A[k, k]
        for i in range(size):
            if i != k:
                factor = A[i, k] / A[k, k]
                for j in range(size):
                    A[i, j] -= factor * A[k, j]
                    B[i, j] -= factor * B[k, j]
    for i in range(size):
        for j in range(size):
            B[i, j] /= A[i, i]
    return abs(determinant)
