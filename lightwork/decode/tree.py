"""Which tree of guesses and probes is worth so many rows, and how many tokens a step then makes.

From "Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference", 2024
(section on dynamic sparse trees). A step verifies guesses, and asks by probes for the guesses of the next
one: c probes under a node make c levels of guesses, if verification ends at that node. How many levels a
step has is its state, so there is a tree for each, and steps are a Markov chain.

A guess of rank r at depth i is right with probability accuracy[i - 1, r], whatever was before it; siblings
exclude each other. The value of a state (what is made of it in the long run, beyond the average) says what a
probe is worth; with the trees that are best for these values, values are computed again, until none gets
better (policy iteration; Howard, 1960). The publication values a state by the tokens of its next step alone.

m levels  R ranks  S states, m + 1 of them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import heappop, heappush
from itertools import pairwise
from math import inf

import numpy as np
from numpy.typing import NDArray

from lightwork.decode.proposers import ROOT, Draft

Floats = NDArray[np.float64]

LONG = 1 << 20
"""Steps after which a chain is taken for steady."""
ROUNDS = 20
"""Of policy iteration, at most; two or three are usual."""


@dataclass(frozen=True, slots=True)
class Tree:
    """parents, ranks: of each guess, parents before children, its parent or ROOT and its place in the list of
    its depth. probes: of ROOT and then of each guess, how many are under it. virtual: rows of each probe.
    """

    parents: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    probes: tuple[int, ...] = (0,)
    virtual: int = 1

    def __len__(self) -> int:
        """Rows."""
        return len(self.parents) + self.virtual * sum(self.probes)

    def draft(self, lists: Sequence[Sequence[int]]) -> Draft:
        """With tokens. lists: of each depth, the tokens by rank."""
        places, probes, parents = _layout(self)
        return Draft((*(lists[level][rank] for level, rank in places), *probes), parents)

    def reached(self, accuracy_mR: Floats) -> Floats:
        """Probability that each guess is accepted, with all before it."""
        reached: list[float] = []
        for parent, rank, depth in zip(self.parents, self.ranks, self._depths(), strict=True):
            before = 1.0 if parent == ROOT else reached[parent]
            reached.append(before * float(accuracy_mR[depth - 1, rank]))
        return np.array(reached)

    def ends(self, accuracy_mR: Floats) -> Floats:
        """Probability that verification ends at ROOT and at each guess; they sum to 1."""
        return _ends(self.parents, self.reached(accuracy_mR))

    def _depths(self) -> list[int]:
        return Draft(self.ranks, self.parents).depths()


@dataclass(frozen=True, eq=False)
class Trees:
    """by_state: the tree for 0, 1, ... levels of guesses, each of at most as many rows."""

    accuracy_mR: Floats
    by_state: tuple[Tree, ...]

    @cached_property
    def chain_SS(self) -> Floats:
        """Probability of each state after each."""
        chain_SS = np.zeros((len(self.by_state),) * 2)
        for state, tree in enumerate(self.by_state):
            np.add.at(chain_SS[state], np.array(tree.probes), tree.ends(self.accuracy_mR))
        return chain_SS

    @cached_property
    def accepted_S(self) -> Floats:
        """Guesses that are accepted in a step of each state, on average."""
        return np.array([float(tree.reached(self.accuracy_mR).sum()) for tree in self.by_state])

    @cached_property
    def share_S(self) -> Floats:
        """Share of the steps in each state in the long run, from a text's first step (state 0) on."""
        states = len(self.by_state)
        lazy_SS = (self.chain_SS + np.eye(states)) / 2  # the same shares, without periods
        return np.asarray(np.linalg.matrix_power(lazy_SS, LONG)[0])

    @property
    def tokens_per_step(self) -> float:
        """In the long run; at least 1."""
        return 1.0 + float(self.share_S @ self.accepted_S)

    def values_S(self) -> Floats:
        """Tokens that are made from each state on beyond the average ones, if state 0 counts 0."""
        states = len(self.by_state)
        system = np.zeros((states + 1, states + 1))
        system[:states, :states] = np.eye(states) - self.chain_SS
        system[:states, states] = 1.0
        system[states, 0] = 1.0
        return np.asarray(np.linalg.lstsq(system, np.append(self.accepted_S, 0.0), rcond=None)[0][:states])


@lru_cache(maxsize=1024)
def _layout(tree: Tree) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...], tuple[int, ...]]:
    """Of a draft: the guesses' places in lists, the tokens of the probes behind them, parents of all. A
    probe's rows follow those of the probe before it one by one, in chains that do not see each other."""
    levels = (depth - 1 for depth in Draft(tree.ranks, tree.parents).depths())
    parents, probes = list(tree.parents), []
    for node, num in enumerate(tree.probes, ROOT):
        for i in range(num * tree.virtual):
            parents.append(node if i < tree.virtual else len(parents) - tree.virtual)
            probes.append(-1 - i)
    return tuple(zip(levels, tree.ranks, strict=True)), tuple(probes), tuple(parents)


def most_accurate(accuracy_mR: Floats, num: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(parents, ranks) of the `num` guesses most likely to be accepted; fewer if there are no more.

    accuracy_mR: falling by rank.
    """
    levels, ranks = accuracy_mR.shape
    found: list[tuple[int, int]] = []
    waiting: list[tuple[float, int, int, int, float]] = []

    def wait(before: float, depth: int, parent: int, rank: int) -> None:
        if depth < levels and rank < ranks:
            heappush(waiting, (-before * float(accuracy_mR[depth, rank]), depth, parent, rank, before))

    wait(1.0, 0, ROOT, 0)
    while waiting and len(found) < num:
        loss, depth, parent, rank, before = heappop(waiting)
        found.append((parent, rank))
        wait(before, depth, parent, rank + 1)
        wait(-loss, depth + 1, len(found) - 1, 0)
    return tuple(parent for parent, _ in found), tuple(rank for _, rank in found)


def best_tree(accuracy_mR: Floats, state: int, rows: int, values_S: Floats, virtual: int = 1) -> Tree:
    """With the most guesses accepted and the best state afterwards, of all numbers of guesses.

    Without guesses there is nothing to do but ask for some, whatever a value says.
    """
    if state == 0:
        return Tree(probes=(min(rows // virtual, len(accuracy_mR)),), virtual=virtual)
    parents, ranks = most_accurate(accuracy_mR[:state], rows)
    reached = Tree(parents, ranks).reached(accuracy_mR)
    most, best = -inf, Tree()
    for num in range(len(parents) + 1):
        ends = _ends(parents[:num], reached[:num])
        probes = _probes(ends, (rows - num) // virtual, values_S)
        worth = float(reached[:num].sum() + ends @ values_S[probes])
        if worth > most:
            most, best = worth, Tree(parents[:num], ranks[:num], tuple(map(int, probes)), virtual)
    return _depth_first(best)


def _depth_first(tree: Tree) -> Tree:
    """The same with every node's likeliest child right behind it: the likeliest path is in the places of
    plain decoding, so that its keys and values are neither copied to be read nor moved when accepted."""
    paths: list[tuple[int, ...]] = []
    for parent, rank in zip(tree.parents, tree.ranks, strict=True):
        paths.append((rank,) if parent == ROOT else (*paths[parent], rank))
    order = sorted(range(len(paths)), key=paths.__getitem__)
    place = {ROOT: ROOT} | {node: i for i, node in enumerate(order)}
    return Tree(
        tuple(place[tree.parents[node]] for node in order),
        tuple(tree.ranks[node] for node in order),
        (tree.probes[0], *(tree.probes[node + 1] for node in order)),
        tree.virtual,
    )


def _ends(parents: Sequence[int], reached: Floats) -> Floats:
    ends = np.array([1.0, *reached])
    np.subtract.at(ends, np.array(parents, int) + 1, reached)
    return np.asarray(np.maximum(ends, 0.0))


def _probes(ends: Floats, most: int, values_S: Floats) -> NDArray[np.int64]:
    """How many probes are under each node, `most` in all: those whose level is worth most where verification
    may end."""
    worth_m = np.maximum(np.minimum.accumulate(np.diff(values_S)), 0.0)  # the i-th not before those above it
    worth = np.outer(ends, worth_m)
    order = np.argsort(-worth, axis=None, kind="stable")[:most]
    order = order[worth.ravel()[order] > 0.0]
    return np.bincount(order // len(worth_m), minlength=len(ends))


def best_trees(accuracy_mR: Floats, rows: int, like: Trees | None = None, virtual: int = 1) -> Trees:
    """The trees of at most `rows` rows that make the most tokens per step. like: where to begin, of fewer.
    virtual: rows of a probe."""
    levels = len(accuracy_mR)
    values_S = np.arange(levels + 1.0) if like is None else like.values_S()
    best, before = like, None
    for _ in range(ROUNDS):
        found = Trees(
            accuracy_mR,
            tuple(best_tree(accuracy_mR, state, rows, values_S, virtual) for state in range(levels + 1)),
        )
        if best is None or found.tokens_per_step > best.tokens_per_step:
            best = found
        if found.by_state == before:
            break
        before, values_S = found.by_state, found.values_S()
    assert best is not None
    return best


def all_trees(accuracy_mR: Floats, most: int, virtual: int = 1) -> list[Trees]:
    """The best for 0, 1, ..., `most` rows; tokens per step never fall. virtual: rows of a probe."""
    found = [best_trees(accuracy_mR, 0, None, virtual)]
    for rows in range(1, most + 1):
        found.append(best_trees(accuracy_mR, rows, found[-1] if rows > 1 else None, virtual))
    return found


def best_rows(tokens: Sequence[float], seconds: Callable[[int], float]) -> int:
    """The number of rows with the most tokens per second. tokens: per step, by rows from 0 on. seconds: of a
    step with so many rows of drafts."""
    return max(range(len(tokens)), key=lambda rows: tokens[rows] / seconds(rows))


def concave(tokens: Sequence[float]) -> list[float]:
    """What each more row adds on the least curve above these that never rises faster: never rising."""
    hull = [0]
    for i in range(1, len(tokens)):
        while len(hull) > 1 and _slope(tokens, hull[-2], hull[-1]) <= _slope(tokens, hull[-1], i):
            hull.pop()
        hull.append(i)
    return [_slope(tokens, a, b) for a, b in pairwise(hull) for _ in range(b - a)]


def _slope(tokens: Sequence[float], a: int, b: int) -> float:
    return (tokens[b] - tokens[a]) / (b - a)
