"""The compiled loops of truncated.py, whose functions say what they are given and write.

Of each point: scores of all states down their tree, their weights by softmax, and sums of what the weights
say. A state whose weight is below NEVER of the largest adds nothing. slab_loops.py has those of units with a
normal strength.
"""

from __future__ import annotations

from math import factorial
from typing import Any

import numba
import numpy as np

NEVER = 1e-16
_LOWEST = float(np.log(NEVER))
_HUGE = 1e300
_LOG2 = float(np.log(2.0))
_ODD = tuple(2.0 / (_LOG2 * (2 * k + 1)) for k in range(8))
"""log2((1 + s) / (1 - s)) / s by powers of s²; the next adds 1e-14 where |s| is largest."""
_EXP2 = tuple(_LOG2**k / factorial(k) for k in range(13))
"""2^x by powers of x; the next adds 2e-16 at 1/2."""
_HALF_ROOT = 0x0010000000000000 - (0x3FF6A09E667F3BCD - 0x3FF0000000000000)
"""What takes a mantissa above sqrt(2) into the next power of two."""
jit = numba.njit(cache=True, nogil=True, error_model="numpy")
_sums = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
_fused = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
_inline = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")


@_inline
def weigh(single: Any, score: Any, top: Any) -> Any:
    """Scores become weights, relative to the largest; returns the weights' sum, the empty state's with it."""
    total = np.exp(-top)
    flat = single.reshape(-1)
    for part in (flat, score):
        for i in range(len(part)):
            below = part[i] - top
            part[i] = np.exp(below) if below > _LOWEST else 0.0
            total += part[i]
    return total


@jit
def tell(
    single: Any, score: Any, none: Any, total: Any, chosen: Any, depth: Any, path: Any, found: Any, n: Any
) -> None:  # fmt: skip
    """The states of largest weight, in order, and how probable it is that each unit is active."""
    active, state, share = found.active[n], found.state[n], found.share[n]
    num_values = len(single) // len(active)
    _insert(none / total, 0, state, share)
    for i in range(len(single)):
        active[i // num_values] += single[i] / total
        _insert(single[i] / total, 1 + i, state, share)
    for s in range(len(score)):
        for i in range(depth[s]):
            active[chosen[path[s, i]]] += score[s] / total
        _insert(score[s] / total, 1 + len(single) + s, state, share)


@jit
def _insert(weight: Any, which: Any, state: Any, share: Any) -> None:
    """Into those of larger weight; the last falls out."""
    at = len(share) - 1
    if at < 0 or weight <= share[at]:
        return
    while at > 0 and weight > share[at - 1]:
        state[at], share[at] = state[at - 1], share[at - 1]
        at -= 1
    state[at], share[at] = which, weight


# -- units that add up


@jit
def linear(
    inner_NH: Any, gram_HH: Any, prior_V: Any, values_V: Any, precision: Any, chosen_NP: Any, parent: Any,
    unit: Any, value: Any, depth: Any, path: Any, path_value: Any, means_NH: Any, pairs_HH: Any,
    counts_V: Any, evidence_N: Any, found: Any,
) -> None:  # fmt: skip
    num_units, num_values = len(gram_HH), len(values_V)
    single = np.empty((num_units, num_values))
    score = np.empty(len(parent))
    num = chosen_NP.shape[1]
    inside, joint = np.empty((num, num)), np.empty((num, num))
    for n in range(len(inner_NH)):
        chosen = chosen_NP[n]
        top = _linear_singles(inner_NH[n], gram_HH, prior_V, values_V, precision, single)
        for i in range(len(chosen)):
            for j in range(len(chosen)):
                inside[i, j] = precision * gram_HH[chosen[i], chosen[j]]
        tree = (parent, unit, value, depth, path, path_value)
        top = _linear_scores(single, inside, values_V, chosen, *tree, score, top)
        total = weigh(single, score, top)
        evidence_N[n] = top + np.log(total)
        if len(found.active) > 0:
            tell(single.reshape(-1), score, np.exp(-top), total, chosen, depth, path, found, n)
            continue
        _count_singles(single, total, values_V, means_NH[n], pairs_HH, counts_V)
        joint[:] = 0.0
        _count_states(score, total, values_V, chosen, depth, path, path_value, means_NH[n], joint, counts_V)
        for i in range(len(chosen)):
            for j in range(i):
                pairs_HH[chosen[i], chosen[j]] += joint[i, j]
                pairs_HH[chosen[j], chosen[i]] += joint[i, j]
            pairs_HH[chosen[i], chosen[i]] += joint[i, i]


@jit
def _linear_singles(inner: Any, gram: Any, prior_V: Any, values_V: Any, precision: Any, single: Any) -> Any:
    """Scores of states of one unit; returns the largest, or the empty state's, 0."""
    top = 0.0
    for h in range(len(single)):
        for k in range(len(values_V)):
            v = values_V[k]
            single[h, k] = prior_V[k] + precision * v * (inner[h] - 0.5 * v * gram[h, h])
            top = max(top, single[h, k])
    return top


@jit
def _linear_scores(
    single: Any, inside: Any, values_V: Any, chosen: Any, parent: Any, unit: Any, value: Any, depth: Any,
    path: Any, path_value: Any, score: Any, top: Any,
) -> Any:  # fmt: skip
    """score(child) = score(parent) + single(unit) - precision v_h sum over parents of v_j G_jh."""
    num_values = len(values_V)
    for s in range(len(score)):
        u, k, p = unit[s], value[s], parent[s]
        shared = 0.0
        for j in range(depth[s] - 1):
            shared += values_V[path_value[s, j]] * inside[path[s, j], u]
        before = score[p] if p >= 0 else single[chosen[(-1 - p) // num_values], (-1 - p) % num_values]
        score[s] = before + single[chosen[u], k] - values_V[k] * shared
        top = max(top, score[s])
    return top


@jit
def _count_singles(single: Any, total: Any, values_V: Any, means: Any, pairs_HH: Any, counts_V: Any) -> None:
    for h in range(len(single)):
        mean = square = 0.0
        for k in range(len(values_V)):
            q = single[h, k] / total
            mean += q * values_V[k]
            square += q * values_V[k] * values_V[k]
            counts_V[k] += q
        means[h] = mean
        pairs_HH[h, h] += square


@jit
def _count_states(
    score: Any, total: Any, values_V: Any, chosen: Any, depth: Any, path: Any, path_value: Any, means: Any,
    joint: Any, counts_V: Any,
) -> None:  # fmt: skip
    for s in range(len(score)):
        if score[s] == 0.0:
            continue
        q = score[s] / total
        for i in range(depth[s]):
            a = path[s, i]
            v = q * values_V[path_value[s, i]]
            counts_V[path_value[s, i]] += q
            means[chosen[a]] += v
            for j in range(i + 1):
                joint[a, path[s, j]] += v * values_V[path_value[s, j]]


# -- units that compete


@_sums
def room(Y_ND: Any, W_HD: Any, lacking_NH: Any) -> None:
    for n in range(len(Y_ND)):
        for h in range(len(W_HD)):
            lacking = 0.0
            for d in range(Y_ND.shape[1]):
                lacking += max(W_HD[h, d] - Y_ND[n, d], 0.0)
            lacking_NH[n, h] = lacking


@jit
def maxima(
    Y_ND: Any, power_HD: Any, W_HD: Any, rho: Any, prior: Any, precision: Any, chosen_NP: Any, parent: Any,
    unit: Any, depth: Any, path: Any, weight_HD: Any, outer_HD: Any, means_NH: Any,
    evidence_N: Any, found: Any,
) -> Any:  # fmt: skip
    num_states, num_dims = len(parent), Y_ND.shape[1]
    single, single_error = np.empty(len(W_HD)), np.empty(len(W_HD))
    score, error = np.empty(num_states), np.empty(num_states)
    sums, shown = np.empty((num_states, num_dims)), np.empty((num_states, num_dims))
    shares = np.empty((chosen_NP.shape[1], num_dims))
    scaled_HD = np.abs(W_HD) ** (rho - 1.0)
    left = 0.0
    for n in range(len(Y_ND)):
        y, chosen, means = Y_ND[n], chosen_NP[n], means_NH[n]
        empty = np.dot(y, y)
        top = 0.0
        for h in range(len(W_HD)):
            single_error[h] = _distance(y, W_HD[h])
            single[h] = prior + 0.5 * precision * (empty - single_error[h])
            top = max(top, single[h])
        for s, p in enumerate(parent):
            _add(sums[p] if p >= 0 else power_HD[chosen[-1 - p]], power_HD[chosen[unit[s]]], sums[s])
        _roots(sums.reshape(-1), 1.0 / rho, shown.reshape(-1))
        for s in range(num_states):
            error[s] = _distance(y, shown[s])
            score[s] = depth[s] * prior + 0.5 * precision * (empty - error[s])
            top = max(top, score[s])
        total = weigh(single, score, top)
        evidence_N[n] = top + np.log(total)
        if len(found.active) > 0:
            tell(single.reshape(-1), score, np.exp(-top), total, chosen, depth, path, found, n)
            continue
        left += np.exp(-top) / total * empty
        for h in range(len(W_HD)):
            q = means[h] = single[h] / total
            if q > 0.0:
                left += q * single_error[h]
                weight_HD[h] += q
                outer_HD[h] += q * y
        shares[:] = 0.0
        for s in range(num_states):
            q = score[s] / total
            if q > 0.0:
                left += q * error[s]
                _share(q, chosen, path[s, : depth[s]], scaled_HD, shown[s], sums[s], means, shares)
        for i in range(len(chosen)):
            weight_HD[chosen[i]] += shares[i]
            outer_HD[chosen[i]] += shares[i] * y
    return left


@_sums
def _distance(a: Any, b: Any) -> Any:
    squares = 0.0
    for d in range(len(a)):
        squares += (a[d] - b[d]) ** 2
    return squares


@jit
def _add(before: Any, added: Any, sums: Any) -> None:
    for d in range(len(sums)):
        sums[d] = before[d] + added[d]


@_fused
def _roots(t: Any, power: Any, out: Any) -> None:
    """out = sign(t) |t|^power, 0 < power <= 1, to 13 digits.

    Logarithm and exponential without branches or calls, so that the loop becomes vector code: with t = m 2^e
    and s = (m - 1) / (m + 1), log2 m by odd powers of s, in pairs, which need not wait for each other; 2^x by
    its series about the nearest whole number.
    """
    bits, out_bits = t.view(np.int64), out.view(np.int64)
    for i in range(len(t)):
        whole = bits[i] & 0x7FFFFFFFFFFFFFFF
        exponent = ((whole + _HALF_ROOT) >> 52) - 1023  # so that m is between sqrt(1/2) and sqrt(2)
        out_bits[i] = whole - (exponent << 52)
        s = (out[i] - 1.0) / (out[i] + 1.0)
        q = s * s
        low = (_ODD[1] * q + _ODD[0]) + (_ODD[3] * q + _ODD[2]) * (q * q)
        high = (_ODD[5] * q + _ODD[4]) + (_ODD[7] * q + _ODD[6]) * (q * q)
        x = power * (exponent + s * (low + high * (q * q) * (q * q)))
        whole_x = max(np.floor(x + 0.5), -1022.0)
        rest = x - whole_x
        exp = _EXP2[12]
        for k in range(11, -1, -1):
            exp = exp * rest + _EXP2[k]
        out_bits[i] = (np.int64(whole_x) + 1023) << 52
        out[i] = np.copysign(exp * out[i], t[i]) if t[i] != 0.0 else 0.0


@_fused
def _share(
    q: Any, chosen: Any, units: Any, scaled_HD: Any, shown: Any, sums: Any, means: Any, shares: Any
) -> None:
    """Its units share what is seen: A_hd = min(|W_hd|^(rho-1) |m_d| / |t_d|, 1), and 1 where they cancel."""
    for d in range(len(sums)):  # which are no longer needed
        sums[d] = abs(shown[d] / sums[d]) if sums[d] != 0.0 else _HUGE
    for i in units:
        means[chosen[i]] += q
        scaled = scaled_HD[chosen[i]]
        for d in range(len(sums)):
            shares[i, d] += q * min(scaled[d] * sums[d], 1.0)
