"""Replication of hot experts: the busiest get copies on other ranks, so that no rank waits for one of them.

Paper:  "DeepSeek-V3 Technical Report", 2024 (redundant experts); "A Survey on Inference Optimization
        Techniques for Mixture of Experts Models", 2024
Idea:   a rank has as many places as all others. While the busiest rank has more than `target` times the mean,
        another copy goes to the expert whose copies are busiest, which share its rows evenly; then copies are
        dealt anew, busiest first, each to the idlest rank that has a place and no copy of it
Shapes: rows of each expert [E], G ranks -> the ranks of each expert
Cost:   O(copies^2 G) per layer, once per trace
Claims: moe_survey
Differs: the report duplicates a set number and places within nodes first; here the fewest that reach a target

E experts of a layer  G ranks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import RangeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """ranks_of: of each expert of a layer, the ranks that have a copy."""

    ranks_of: tuple[tuple[int, ...], ...]
    num_ranks: int

    @property
    def num_copies(self) -> int:
        return sum(len(ranks) for ranks in self.ranks_of)

    @property
    def extra(self) -> float:
        """Copies beside the first ones, as a share of the experts."""
        return self.num_copies / len(self.ranks_of) - 1.0

    def rows_of(self, rows_E: Sequence[float]) -> NDArray[np.float64]:
        """Of each rank [G], when the copies of an expert share its rows."""
        rows_G = np.zeros(self.num_ranks)
        for rows, ranks in zip(rows_E, self.ranks_of, strict=True):
            np.add.at(rows_G, list(ranks), rows / len(ranks))
        return rows_G

    def imbalance(self, rows_E: Sequence[float]) -> float:
        """The busiest rank over the mean: 1 is even."""
        rows_G = self.rows_of(rows_E)
        return float(rows_G.max() / rows_G.mean())


def replicate(
    rows_E: Sequence[float], num_ranks: int, *, target: float = 1.2, most_extra: float = 0.25
) -> Replicas:
    """The fewest copies that reach max over mean <= target; those that come nearest if most_extra do not.

    most_extra: copies beside the first ones, as a share of the experts. Raises RangeError without rows, and
    for fewer experts than ranks.
    """
    rows = np.asarray(rows_E, np.float64)
    if len(rows) < num_ranks or num_ranks < 1 or not rows.sum() > 0:
        raise RangeError(
            f"{len(rows)} experts of {rows.sum():g} rows on {num_ranks} ranks",
            expected="at least as many experts as ranks, and a row",
        )
    copies_E = np.ones(len(rows), np.int64)
    best = _dealt(rows, copies_E, num_ranks)
    for _ in range(int(most_extra * len(rows))):
        if best.imbalance(rows_E) <= target:
            break
        share_E = np.where(copies_E < num_ranks, rows / copies_E, -1.0)
        copies_E[int(share_E.argmax())] += 1
        found = _dealt(rows, copies_E, num_ranks)
        if found.imbalance(rows_E) < best.imbalance(rows_E):
            best = found
    return best


def migrated(before: Replicas, after: Replicas) -> int:
    """Copies that have to be moved when one plan takes the place of another: times the bytes of an expert,
    what rebalancing costs."""
    pairs = zip(before.ranks_of, after.ranks_of, strict=True)
    return sum(len({*new} - {*old}) for old, new in pairs)


def _dealt(rows: NDArray[np.float64], copies_E: NDArray[np.int64], num_ranks: int) -> Replicas:
    """Copies on ranks that have as many places each."""
    places = -(-int(copies_E.sum()) // num_ranks)
    busy = [(0.0, 0, rank) for rank in range(num_ranks)]  # rows, copies, rank
    ranks_of: list[list[int]] = [[] for _ in rows]
    share_E = rows / copies_E
    for e in np.argsort(-share_E, kind="stable").tolist():
        for _ in range(int(copies_E[e])):
            _give(busy, ranks_of[e], float(share_E[e]), places)
    return Replicas(ranks_of=tuple(tuple(sorted(ranks)) for ranks in ranks_of), num_ranks=num_ranks)


def _give(busy: list[tuple[float, int, int]], ranks: list[int], share: float, places: int) -> None:
    """One more copy to the idlest rank that has a place, and none of this expert if that can be had."""
    free = [entry for entry in busy if entry[1] < places]
    apart = [entry for entry in free if entry[2] not in ranks]
    taken = min(apart or free)
    at = busy.index(taken)
    busy[at] = (taken[0] + share, taken[1] + 1, taken[2])
    ranks.append(taken[2])
