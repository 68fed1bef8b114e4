"""Sums over the few states that matter of many binary or discrete units: one pass for each data point.

The states of a point are: no unit active, each single unit with each value, and all states with two to gamma
active units among the point's H' candidates. They form a tree: a state is its parent and one more unit, so its
score is its parent's and what that unit adds. Nothing of size points x states is kept.

Scores are relative to the empty state's. Weights q are softmax over the point's states, shifted by the largest
score, so nothing underflows.

N points  H units  D dimensions  V values but zero  P = H' candidates  S states of two and more
Source: Lücke and Eggert, "Expectation Truncation and the Benefits of Preselection in Training Generative
Models" (JMLR 11, 2010); the tree is ours.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import MissingExtraError, RangeError

Floats = NDArray[Any]
NEVER = 1e-15
"""A state of less weight adds nothing to what is summed over states."""


class States(NamedTuple):
    """The states of two and more active units, parents first, of P candidates.

    parent [S]: of them, or -1 - i for the single state i = candidate * V + value. unit, value, depth [S]: the
    candidate that a state adds, which value it has, and how many are active. path, path_value [S, gamma]: all
    active candidates and their values, -1 where there are none.
    """

    parent: NDArray[np.int32]
    unit: NDArray[np.int32]
    value: NDArray[np.int32]
    depth: NDArray[np.int32]
    path: NDArray[np.int32]
    path_value: NDArray[np.int32]


@cache
def states(candidates: int, gamma: int, num_values: int) -> States:
    """All of them. Raises RangeError for gamma > candidates."""
    if not 1 <= gamma <= candidates:
        raise RangeError(
            f"{gamma} active units of {candidates} candidates", expected="1 <= gamma <= candidates"
        )
    index: dict[tuple[tuple[int, int], ...], int] = {}
    for unit in range(candidates):
        for value in range(num_values):
            index[((unit, value),)] = -1 - (unit * num_values + value)
    parent, last, depth, paths = [], [], [], []
    for size in range(2, gamma + 1):
        for units in combinations(range(candidates), size):
            for values in product(range(num_values), repeat=size):
                path = tuple(zip(units, values, strict=True))
                index[path] = len(paths)
                parent.append(index[path[:-1]])
                last.append(path[-1])
                depth.append(size)
                paths.append(path)
    filled = np.full((2, len(paths), gamma), -1, np.int32)
    for i, path in enumerate(paths):
        filled[0, i, : len(path)] = [unit for unit, _ in path]
        filled[1, i, : len(path)] = [value for _, value in path]
    ends = np.array(last, np.int32).reshape(-1, 2)
    return States(
        np.array(parent, np.int32), ends[:, 0].copy(), ends[:, 1].copy(), np.array(depth, np.int32), *filled
    )


def linear(
    inner_NH: Floats,
    gram_HH: Floats,
    prior_V: Floats,
    values_V: Floats,
    precision: float,
    chosen_NP: NDArray[np.int32],
    table: States,
    keep_N: NDArray[np.bool_],
    means_NH: Floats,
    pairs_HH: Floats,
    counts_V: Floats,
    evidence_N: Floats,
) -> None:
    """Models whose units add up: y ~ N(W s, I / precision).

    inner_NH: y W. gram_HH: W^T W. prior_V: log p(value) - log p(0), as annealed. chosen_NP: each point's
    candidates. keep_N: points that count in pairs and counts, and get means.

    Writes means_NH = <s> and evidence_N: the logarithm of the sum over states, relative to the empty one. Adds
    to pairs_HH sum <s s^T> and to counts_V how often each value is expected.
    """
    _linear()(
        inner_NH, gram_HH, prior_V, values_V, precision, chosen_NP, *table, keep_N, means_NH, pairs_HH, counts_V,
        evidence_N,
    )  # fmt: skip


def _linear_loop(
    inner_NH: Any, gram_HH: Any, prior_V: Any, values_V: Any, precision: Any, chosen_NP: Any, parent: Any,
    unit: Any, value: Any, depth: Any, path: Any, path_value: Any, keep_N: Any, means_NH: Any, pairs_HH: Any,
    counts_V: Any, evidence_N: Any,
) -> None:  # fmt: skip
    num_points, num_units = inner_NH.shape
    num_candidates, num_values, num_states = chosen_NP.shape[1], len(values_V), len(parent)
    single = np.empty((num_units, num_values))
    score = np.empty(num_states)
    inside = np.empty((num_candidates, num_candidates))
    joint = np.empty((num_candidates, num_candidates))
    for n in range(num_points):
        top = 0.0
        for h in range(num_units):
            for k in range(num_values):
                v = values_V[k]
                single[h, k] = prior_V[k] + precision * v * (inner_NH[n, h] - 0.5 * v * gram_HH[h, h])
                top = max(top, single[h, k])
        chosen = chosen_NP[n]
        for i in range(num_candidates):
            for j in range(num_candidates):
                inside[i, j] = precision * gram_HH[chosen[i], chosen[j]]
        for s in range(num_states):
            u, k = unit[s], value[s]
            last = depth[s] - 1
            shared = 0.0
            for j in range(last):
                shared += values_V[path_value[s, j]] * inside[path[s, j], u]
            p = parent[s]
            before = score[p] if p >= 0 else single[chosen[(-1 - p) // num_values], (-1 - p) % num_values]
            score[s] = before + single[chosen[u], k] - values_V[k] * shared
            top = max(top, score[s])
        total = np.exp(-top)
        for h in range(num_units):
            for k in range(num_values):
                single[h, k] = np.exp(single[h, k] - top)
                total += single[h, k]
        for s in range(num_states):
            score[s] = np.exp(score[s] - top)
            total += score[s]
        evidence_N[n] = top + np.log(total)
        if not keep_N[n]:
            continue
        for h in range(num_units):
            mean = square = 0.0
            for k in range(num_values):
                q = single[h, k] / total
                mean += q * values_V[k]
                square += q * values_V[k] * values_V[k]
                counts_V[k] += q
            means_NH[n, h] = mean
            pairs_HH[h, h] += square
        joint[:] = 0.0
        for s in range(num_states):
            q = score[s] / total
            for i in range(depth[s]):
                a = path[s, i]
                v = q * values_V[path_value[s, i]]
                counts_V[path_value[s, i]] += q
                means_NH[n, chosen[a]] += v
                for j in range(i + 1):
                    joint[a, path[s, j]] += v * values_V[path_value[s, j]]
        for i in range(num_candidates):
            for j in range(i):
                pairs_HH[chosen[i], chosen[j]] += joint[i, j]
                pairs_HH[chosen[j], chosen[i]] += joint[i, j]
            pairs_HH[chosen[i], chosen[i]] += joint[i, i]


def maxima(
    Y_ND: Floats,
    power_HD: Floats,
    sign_HD: Floats,
    rho: float,
    prior: float,
    precision: float,
    chosen_NP: NDArray[np.int32],
    table: States,
    keep_N: NDArray[np.bool_],
    weight_HD: Floats,
    outer_HD: Floats,
    means_NH: Floats,
    evidence_N: Floats,
) -> float:
    """Models whose units compete: y_d ~ N(m_d, 1 / precision) with m_d the component of largest magnitude.

    The maximum is smooth: m = t^(1 / rho), t = sum of power_HD = sign |W|^rho over active units. A unit's
    share of it is A_hd = (|W_hd| / |m_d|)^(rho - 1), 1 for a single unit.

    Writes means_NH = <s> and evidence_N, relative to the empty state. Adds sum <A> to weight_HD and sum <A> y
    to outer_HD. Returns sum <|y - m|²> over the rows that are kept.
    """
    left: float = _maxima()(
        Y_ND, power_HD, sign_HD, rho, prior, precision, chosen_NP, table.parent, table.unit, table.depth,
        table.path, keep_N, weight_HD, outer_HD, means_NH, evidence_N,
    )  # fmt: skip
    return left


def _maxima_loop(
    Y_ND: Any, power_HD: Any, W_HD: Any, rho: Any, prior: Any, precision: Any, chosen_NP: Any, parent: Any,
    unit: Any, depth: Any, path: Any, keep_N: Any, weight_HD: Any, outer_HD: Any, means_NH: Any, evidence_N: Any,
) -> Any:  # fmt: skip
    num_points, num_dims = Y_ND.shape
    num_units, num_candidates, num_states = W_HD.shape[0], chosen_NP.shape[1], len(parent)
    single, single_error = np.empty(num_units), np.empty(num_units)
    score, error = np.empty(num_states), np.empty(num_states)
    sums = np.empty((num_states, num_dims))
    shown = np.empty((num_states, num_dims))
    scaled_HD = np.sign(W_HD) * np.abs(W_HD) ** (rho - 1.0)
    left = 0.0
    for n in range(num_points):
        y, chosen = Y_ND[n], chosen_NP[n]
        empty = 0.0
        for d in range(num_dims):
            empty += y[d] * y[d]
        top = 0.0
        for h in range(num_units):
            squares = 0.0
            for d in range(num_dims):
                squares += (y[d] - W_HD[h, d]) ** 2
            single_error[h] = squares
            single[h] = prior + 0.5 * precision * (empty - squares)
            top = max(top, single[h])
        for s in range(num_states):
            p, added = parent[s], power_HD[chosen[unit[s]]]
            before = sums[p] if p >= 0 else power_HD[chosen[-1 - p]]
            for d in range(num_dims):
                sums[s, d] = before[d] + added[d]
        _roots(sums, 1.0 / rho, shown)
        for s in range(num_states):
            squares = 0.0
            for d in range(num_dims):
                squares += (y[d] - shown[s, d]) ** 2
            error[s] = squares
            score[s] = depth[s] * prior + 0.5 * precision * (empty - squares)
            top = max(top, score[s])
        total = np.exp(-top)
        for h in range(num_units):
            single[h] = np.exp(single[h] - top)
            total += single[h]
        for s in range(num_states):
            score[s] = np.exp(score[s] - top)
            total += score[s]
        evidence_N[n] = top + np.log(total)
        if not keep_N[n]:
            continue
        left += np.exp(-top) / total * empty
        for h in range(num_units):
            q = single[h] / total
            means_NH[n, h] = q
            left += q * single_error[h]
            if q > NEVER:
                for d in range(num_dims):
                    weight_HD[h, d] += q
                    outer_HD[h, d] += q * y[d]
        for s in range(num_states):
            q = score[s] / total
            left += q * error[s]
            for i in range(depth[s]):
                means_NH[n, chosen[path[s, i]]] += q
            if q > NEVER:
                for i in range(depth[s]):
                    h = chosen[path[s, i]]
                    for d in range(num_dims):
                        share = q * abs(scaled_HD[h, d] * shown[s, d] / sums[s, d])
                        weight_HD[h, d] += share
                        outer_HD[h, d] += share * y[d]
    return left


def _roots_loop(t: Any, power: Any, out: Any) -> None:
    """sign(t) |t|^power, of each."""
    for i in range(t.shape[0]):
        for d in range(t.shape[1]):
            out[i, d] = np.copysign(np.exp(np.log(abs(t[i, d])) * power), t[i, d])


def slabs(
    inner_NH: Floats,
    gram_HH: Floats,
    mean_H: Floats,
    root_H: Floats,
    prior_H: Floats,
    beta: float,
    chosen_NP: NDArray[np.int32],
    table: States,
    keep_N: NDArray[np.bool_],
    stats: tuple[Floats, ...],
    evidence_N: Floats,
) -> None:
    """Units that are off, or on with a normal strength: y ~ N(sum s_h z_h W_h, I), z_h ~ N(mean_h, root_h²).

    inner_NH: (y - 0) W; gram_HH: W^T W, both of rows and components divided by the noise. With a_h = root_h W_h,
    M = I + a^T a over the active units and v = a^T (y - W mean): log N(y) = -(log |M| + |y - W mean|² - v^T M^-1 v)
    / 2, and z has mean mean + root M^-1 v and covariance root M^-1 root. M's Cholesky factor grows by a row from
    a state to its children.

    stats: means <s z> [N, H]; then, added up: <s> [H], <(s z)(s z)^T> [H, H], <(s z) s^T> [H, H], <s s^T> [H, H].
    evidence_N: relative to the empty state.
    """
    _slabs()(
        inner_NH, gram_HH, mean_H, root_H, prior_H, beta, chosen_NP, table.parent, table.unit, table.depth,
        table.path, keep_N, *stats, evidence_N,
    )  # fmt: skip


def _slabs_loop(
    inner_NH: Any, gram_HH: Any, mean_H: Any, root_H: Any, prior_H: Any, beta: Any, chosen_NP: Any, parent: Any,
    unit: Any, depth: Any, path: Any, keep_N: Any, means_NH: Any, active_H: Any, square_HH: Any, cross_HH: Any,
    pairs_HH: Any, evidence_N: Any,
) -> None:  # fmt: skip
    num_points, num_units = inner_NH.shape
    num_states, gamma = path.shape
    num_candidates = chosen_NP.shape[1]
    single, gain = np.empty(num_units), np.empty(num_units)
    score = np.empty(num_states)
    factor = np.empty((num_states, gamma, gamma))
    whole = np.empty((num_states, 3))  # log |M|, v^T M^-1 v and |y - W mean|² - |y|², of a state
    u, z, kappa = np.empty(gamma), np.empty(gamma), np.empty(gamma)
    inverse, one = np.empty((gamma, gamma)), np.empty((gamma, gamma))
    for n in range(num_points):
        b, chosen = inner_NH[n], chosen_NP[n]
        top = 0.0
        for h in range(num_units):
            m = 1.0 + root_H[h] ** 2 * gram_HH[h, h]
            v = root_H[h] * (b[h] - gram_HH[h, h] * mean_H[h])
            moved = mean_H[h] * (mean_H[h] * gram_HH[h, h] - 2.0 * b[h])
            single[h] = prior_H[h] - 0.5 * beta * (np.log(m) + moved - v * v / m)
            gain[h] = v / m
            top = max(top, single[h])
        for s in range(num_states):
            size, p = depth[s], parent[s]
            last = size - 1
            new = chosen[unit[s]]
            L = factor[s]
            if p >= 0:
                for i in range(last):
                    for j in range(i + 1):
                        L[i, j] = factor[p, i, j]
            else:
                first = chosen[-1 - p]
                L[0, 0] = np.sqrt(1.0 + root_H[first] ** 2 * gram_HH[first, first])
            rest = 1.0 + root_H[new] ** 2 * gram_HH[new, new]
            for i in range(last):
                h = chosen[path[s, i]]
                value = root_H[h] * root_H[new] * gram_HH[h, new]
                for j in range(i):
                    value -= L[i, j] * L[last, j]
                L[last, i] = value / L[i, i]
                rest -= L[last, i] ** 2
            L[last, last] = np.sqrt(rest)
            logdet = quadratic = moved = log_prior = 0.0
            for i in range(size):
                h = chosen[path[s, i]]
                shared = 0.0
                for j in range(size):
                    shared += gram_HH[h, chosen[path[s, j]]] * mean_H[chosen[path[s, j]]]
                u[i] = root_H[h] * (b[h] - shared)
                moved += mean_H[h] * (shared - 2.0 * b[h])
                log_prior += prior_H[h]
                for j in range(i):
                    u[i] -= L[i, j] * u[j]
                u[i] /= L[i, i]
                quadratic += u[i] ** 2
                logdet += 2.0 * np.log(L[i, i])
            score[s] = log_prior - 0.5 * beta * (logdet + moved - quadratic)
            top = max(top, score[s])
        total = np.exp(-top)
        for h in range(num_units):
            single[h] = np.exp(single[h] - top)
            total += single[h]
        for s in range(num_states):
            score[s] = np.exp(score[s] - top)
            total += score[s]
        evidence_N[n] = top + np.log(total)
        if not keep_N[n]:
            continue
        for h in range(num_units):
            q = single[h] / total
            strength = mean_H[h] + root_H[h] * gain[h]
            spread = root_H[h] ** 2 / (1.0 + root_H[h] ** 2 * gram_HH[h, h])
            means_NH[n, h] = q * strength
            active_H[h] += q
            square_HH[h, h] += q * (strength**2 + spread)
            cross_HH[h, h] += q * strength
            pairs_HH[h, h] += q
        for s in range(num_states):
            q = score[s] / total
            if q < NEVER:
                continue
            size, L = depth[s], factor[s]
            for k in range(size):  # the inverse of L, column by column
                for i in range(size):
                    value = 1.0 if i == k else 0.0
                    for j in range(k, i):
                        value -= L[i, j] * one[j, k]
                    one[i, k] = value / L[i, i] if i >= k else 0.0
            for i in range(size):
                for j in range(size):
                    value = 0.0
                    for k in range(max(i, j), size):
                        value += one[k, i] * one[k, j]
                    inverse[i, j] = value
            for i in range(size):
                h = chosen[path[s, i]]
                shared = 0.0
                for j in range(size):
                    shared += gram_HH[h, chosen[path[s, j]]] * mean_H[chosen[path[s, j]]]
                z[i] = root_H[h] * (b[h] - shared)
            for i in range(size):
                h = chosen[path[s, i]]
                value = 0.0
                for j in range(size):
                    value += inverse[i, j] * z[j]
                kappa[i] = mean_H[h] + root_H[h] * value
            for i in range(size):
                h = chosen[path[s, i]]
                means_NH[n, h] += q * kappa[i]
                active_H[h] += q
                for j in range(size):
                    g = chosen[path[s, j]]
                    square_HH[h, g] += q * (kappa[i] * kappa[j] + root_H[h] * root_H[g] * inverse[i, j])
                    cross_HH[h, g] += q * kappa[i]
                    pairs_HH[h, g] += q


def best(score_NH: Floats, num: int) -> NDArray[np.int32]:
    """The num units of largest score of each point, int32 [N, num], in order of their number."""
    if num == score_NH.shape[1]:
        return np.broadcast_to(np.arange(num, dtype=np.int32), score_NH.shape).copy()
    found = np.argpartition(-score_NH, num - 1, axis=1)[:, :num]
    return np.sort(found, axis=1).astype(np.int32)


@cache
def _linear() -> Any:
    return _compiled(_linear_loop)


@cache
def _slabs() -> Any:
    return _compiled(_slabs_loop)


@cache
def _maxima() -> Any:
    global _roots
    _roots = _compiled(_roots_loop)
    return _compiled(_maxima_loop)


def _compiled(loop: Any) -> Any:
    try:
        from numba import njit
    except ModuleNotFoundError:
        raise MissingExtraError("numba", "learn") from None
    return njit(cache=True, nogil=True, error_model="numpy")(loop)
