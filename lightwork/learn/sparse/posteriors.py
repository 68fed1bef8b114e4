"""What a fitted coder says of each row: its most probable states, and how probable each unit is.

A row whose best state has as many active units as are allowed may need more: it is looked at again with one
candidate and one active unit more, until its best state has fewer than are allowed, or a limit is reached.
Probabilities are of the states that were summed over, so over all of these they add up to 1.

N rows  H units  K states told
Source: Exarchakis et al., "ProSper" (2019), adaptive inference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import RangeError
from lightwork.kernels.truncated import Found, states
from lightwork.learn.sparse.shard import BLOCK

if TYPE_CHECKING:
    from lightwork.learn.sparse.truncated_em import Knobs, SparseCoder


class Posterior(NamedTuple):
    """states [N, K, H]: units' values, the most probable state first; of GSC, 1 where a unit is on.
    probabilities [N, K]: of them; 0 where a row has fewer states. active [N, H]: that a unit is not 0.
    n_candidates, n_active [N]: what was allowed.
    """

    states: NDArray[Any]
    probabilities: NDArray[Any]
    active: NDArray[Any]
    n_candidates: NDArray[np.int64]
    n_active: NDArray[np.int64]


def posterior(coder: SparseCoder, X: NDArray[Any], num_states: int, max_active: int | None) -> Posterior:
    """Of rows [N, D]. Raises RangeError for num_states < 1."""
    if num_states < 1:
        raise RangeError(f"{num_states} states of each row", expected="at least 1")
    num, units = len(X), coder.n_components
    told = Posterior(
        np.zeros((num, num_states, units), X.dtype), np.zeros((num, num_states)), np.zeros((num, units)),
        np.zeros(num, np.int64), np.zeros(num, np.int64),
    )  # fmt: skip
    knobs, rows = coder._knobs(1.0), np.arange(num)
    most = min(knobs.gamma if max_active is None else max_active, units)
    while len(rows):
        for begin in range(0, len(rows), BLOCK):
            _tell(coder, X, knobs, rows[begin : begin + BLOCK], told)
        if knobs.gamma >= most:
            break
        rows = rows[(told.states[rows, 0] != 0).sum(1) == knobs.gamma]
        knobs = knobs._replace(gamma=knobs.gamma + 1, candidates=min(knobs.candidates + 1, units))
    return told


def _tell(coder: SparseCoder, X: NDArray[Any], knobs: Knobs, rows: NDArray[Any], told: Posterior) -> None:
    found = Found.of(len(rows), coder.n_components, told.states.shape[1])
    local = coder._local(coder._params, X[rows], knobs, found)
    told.states[rows] = _spelt(found.state, local.chosen, coder._values(), coder.n_components, knobs)
    told.probabilities[rows], told.active[rows] = found.share, found.active
    told.n_candidates[rows], told.n_active[rows] = knobs.candidates, knobs.gamma


def _spelt(
    state: NDArray[np.int32], chosen: NDArray[np.int32], values: tuple[float, ...], units: int, knobs: Knobs
) -> NDArray[Any]:
    """Units' values [N, K, H] of states by their number [N, K]."""
    spelt = np.zeros((*state.shape, units))
    num_singles = units * len(values)
    n, k = np.nonzero((state > 0) & (state <= num_singles))
    unit, value = np.divmod(state[n, k] - 1, len(values))
    spelt[n, k, unit] = np.array(values)[value]
    table = states(knobs.candidates, knobs.gamma, len(values))
    n, k = np.nonzero(state > num_singles)
    which = state[n, k] - 1 - num_singles
    for depth in range(knobs.gamma):
        on = table.depth[which] > depth
        path, value = table.path[which[on], depth], table.path_value[which[on], depth]
        spelt[n[on], k[on], chosen[n[on], path]] = np.array(values)[value]
    return spelt
