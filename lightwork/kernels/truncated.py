"""Sums over the few states that matter of many binary or discrete units: one pass for each data point.

The states of a point are: no unit active, each single unit with each value, and all states with two to gamma
active units among the point's H' candidates. They form a tree: a state is its parent and one more unit, so
its score is its parent's and what that unit adds. Nothing of size points x states is kept.

Scores are relative to the empty state's. Weights q are softmax over the point's states, shifted by the
largest score, so nothing underflows.

N points  H units  D dimensions  V values but zero  P = H' candidates  S states of two and more
Source: Lücke and Eggert, "Expectation Truncation and the Benefits of Preselection in Training Generative
Models" (JMLR 11, 2010); the tree is ours.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
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


class Found(NamedTuple):
    """What is told of each point in place of sums and means, where active has rows: zeros to begin with.

    active [N, H]: how probable it is that a unit is active. state, share [N, K]: the most probable states, in
    order, and their probabilities; 0 is the empty state, then come the single ones, unit by unit, then those
    of `States`. Where fewer than K states have a weight, the rest are empty states with probability 0.
    """

    active: Floats
    state: NDArray[np.int32]
    share: Floats

    @classmethod
    def of(cls, points: int, units: int, num_states: int) -> Found:
        size = (points, num_states)
        return cls(np.zeros((points, units)), np.zeros(size, np.int32), np.zeros(size))


NOTHING = Found.of(0, 0, 0)


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
    parent: list[int] = []
    last: list[tuple[int, int]] = []
    depth: list[int] = []
    paths: list[tuple[tuple[int, int], ...]] = []
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
    means_NH: Floats,
    pairs_HH: Floats,
    counts_V: Floats,
    evidence_N: Floats,
    found: Found = NOTHING,
) -> None:
    """Models whose units add up: y ~ N(W s, I / precision).

    inner_NH: y W. gram_HH: W^T W. prior_V: log p(value) - log p(0), as annealed. chosen_NP: each point's
    candidates.

    Writes means_NH = <s> and evidence_N: the logarithm of the sum over states, relative to the empty one.
    Adds to pairs_HH sum <s s^T> and to counts_V how often each value is expected.
    """
    _compiled("truncated_loops").linear(
        inner_NH, gram_HH, prior_V, values_V, precision, chosen_NP, *table, means_NH, pairs_HH,
        counts_V, evidence_N, found,
    )  # fmt: skip


def maxima(
    Y_ND: Floats,
    power_HD: Floats,
    sign_HD: Floats,
    rho: float,
    prior: float,
    precision: float,
    chosen_NP: NDArray[np.int32],
    table: States,
    weight_HD: Floats,
    outer_HD: Floats,
    means_NH: Floats,
    evidence_N: Floats,
    found: Found = NOTHING,
) -> float:
    """Models whose units compete: y_d ~ N(m_d, 1 / precision) with m_d the component of largest magnitude.

    The maximum is smooth: m = t^(1 / rho), t = sum of power_HD = sign |W|^rho over active units. A unit's
    share of it is A_hd = (|W_hd| / |m_d|)^(rho - 1), 1 for a single unit.

    Writes means_NH = <s> and evidence_N, relative to the empty state. Adds sum <A> to weight_HD and sum <A> y
    to outer_HD. Returns sum <|y - m|²> over the rows that are kept.
    """
    left: float = _compiled("truncated_loops").maxima(
        Y_ND, power_HD, sign_HD, rho, prior, precision, chosen_NP, table.parent, table.unit, table.depth,
        table.path, weight_HD, outer_HD, means_NH, evidence_N, found,
    )  # fmt: skip
    return left


def room(Y_ND: Floats, W_HD: Floats) -> Floats:
    """How much each row lacks of each component: sum over d of max(W_hd - y_d, 0), [N, H]."""
    lacking = np.empty((len(Y_ND), len(W_HD)))
    _compiled("truncated_loops").room(Y_ND, W_HD, lacking)
    return lacking


def slabs(
    inner_NH: Floats,
    gram_HH: Floats,
    mean_H: Floats,
    psi: Floats,
    prior_H: Floats,
    chosen_NP: NDArray[np.int32],
    table: States,
    stats: tuple[Floats, ...],
    evidence_N: Floats,
    found: Found = NOTHING,
) -> None:
    """Units that are off, or on with a normal strength: y ~ N(sum s_h z_h W_h, I), z ~ N(mean, psi).

    inner_NH: y W; gram_HH: W^T W, both of rows and components divided by the noise. psi: variances [H], or a
    covariance [H, H]. Of variances, with a_h = psi_h^1/2 W_h, M = I + a^T a over the active units and
    v = a^T (y - W mean):

        log N(y) = -(log |M| + |y - W mean|² - v^T M^-1 v) / 2 + constant

    and z has mean mean + psi^1/2 M^-1 v and covariance psi^1/2 M^-1 psi^1/2. M's Cholesky factor grows by a
    row from a state to its children. Of a covariance, that of z over the active units S is
    (1 + psi_SS G_SS)^-1 psi_SS, by elimination for each state: nothing of it grows.

    stats: means <s z> [N, H]; then, added up: <s> [H], and <(s z)(s z)^T>, <(s z) s^T>, <s s^T> [H, H].
    evidence_N: relative to the empty state.
    """
    loops = _compiled("slab_loops")
    if psi.ndim == 2:
        loops.joint_slabs(
            inner_NH, gram_HH, mean_H, psi, prior_H, chosen_NP, table.depth, table.path, *stats, evidence_N,
            found,
        )  # fmt: skip
        return
    loops.slabs(
        inner_NH, gram_HH, mean_H, np.sqrt(psi), prior_H, chosen_NP, table.parent, table.unit, table.depth,
        table.path, *stats, evidence_N, found,
    )  # fmt: skip


def best(score_NH: Floats, num: int) -> NDArray[np.int32]:
    """The num units of largest score of each point, int32 [N, num], in order of their number."""
    if num == score_NH.shape[1]:
        return np.broadcast_to(np.arange(num, dtype=np.int32), score_NH.shape).copy()
    found = np.argpartition(-score_NH, num - 1, axis=1)[:, :num]
    return np.sort(found, axis=1).astype(np.int32)


def _compiled(name: str) -> Any:
    try:
        return import_module(f"lightwork.kernels.{name}")
    except ModuleNotFoundError:
        raise MissingExtraError("numba", "learn") from None
