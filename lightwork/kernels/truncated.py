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
        raise RangeError(f"{gamma} active units of {candidates} candidates", expected="1 <= gamma <= candidates")
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


def best(score_NH: Floats, num: int) -> NDArray[np.int32]:
    """The num units of largest score of each point, int32 [N, num], in order of their number."""
    if num == score_NH.shape[1]:
        return np.broadcast_to(np.arange(num, dtype=np.int32), score_NH.shape).copy()
    found = np.argpartition(-score_NH, num - 1, axis=1)[:, :num]
    return np.sort(found, axis=1).astype(np.int32)


@cache
def _linear() -> Any:
    return _compiled(_linear_loop)


def _compiled(loop: Any) -> Any:
    try:
        from numba import njit
    except ModuleNotFoundError:
        raise MissingExtraError("numba", "learn") from None
    return njit(cache=True, nogil=True, error_model="numpy")(loop)
