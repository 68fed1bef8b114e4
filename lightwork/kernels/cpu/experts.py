"""Mixture of experts: each row goes through its most probable experts, rows of one expert together.

Sources: Shazeer et al., "Outrageously Large Neural Networks", 2017; Jiang et al., "Mixtral of Experts", 2024.
E experts  A rows times experts per row
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.cpu.compiled import compiled, summing
from lightwork.kernels.cpu.rowwise import LOG2_E, exp2


@summing
def _score(x: Any, weight: Any) -> Any:
    total = np.float32(0)
    for k in range(x.shape[0]):
        total += x[k] * weight[k]
    return total


@compiled
def choose_experts(x: Any, router: Any, scores: Any, normalise: bool, chosen: Any, gates: Any) -> None:
    """The experts of one row and their gates. router [E * d], scores [E]: scratch.

    Gates are the router's probabilities; normalised to sum to 1 over the chosen if asked.
    """
    size = x.shape[0]
    most, total, kept = np.float32(-np.inf), np.float32(0), np.float32(0)
    for e in range(scores.shape[0]):
        scores[e] = _score(x, router[e * size : (e + 1) * size])
        most = max(most, scores[e])
    for e in range(scores.shape[0]):
        scores[e] = exp2((scores[e] - most) * LOG2_E)
        total += scores[e]
    for j in range(chosen.shape[0]):
        best = 0
        for e in range(1, scores.shape[0]):
            if scores[e] > scores[best]:
                best = e
        chosen[j], gates[j] = best, scores[best] / total
        kept += gates[j]
        scores[best] = -1
    if normalise:
        for j in range(gates.shape[0]):
            gates[j] /= kept


@compiled
def sort_by_expert(expert_of: Any, order: Any, starts: Any) -> None:
    """Counting sort: order[i]: the place of assignment i among all A; starts [E + 1]: of each expert."""
    starts[:] = 0
    for e in expert_of:
        starts[e + 1] += 1
    for e in range(starts.shape[0] - 1):
        starts[e + 1] += starts[e]
    for i in range(expert_of.shape[0]):
        order[i] = starts[expert_of[i]]
        starts[expert_of[i]] += 1
    for e in range(starts.shape[0] - 1, 0, -1):
        starts[e] = starts[e - 1]
    starts[0] = 0


@compiled
def mix_experts(x: Any, out: Any, places: Any, gates: Any) -> None:
    """x += gate * out[place] over the experts of one row, in order of probability. out [A * d]."""
    size = x.shape[0]
    for j in range(places.shape[0]):
        part = out[places[j] * size : (places[j] + 1) * size]
        for k in range(size):
            x[k] += gates[j] * part[k]
