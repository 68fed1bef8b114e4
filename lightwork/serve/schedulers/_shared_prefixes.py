"""Which prefixes are worth computing once: one per prompt, so that the tokens saved are as many as can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lightwork.serve.sequence import Sequence as Seq

ROOT = 0


class SharedPrefix(NamedTuple):
    """A group of prompts, by number, that begin with the same `length` tokens."""

    length: int
    members: list[int]

    @property
    def saved_tokens(self) -> int:
        """Prompt tokens that need not be computed: all members but the first find the prefix there."""
        return (len(self.members) - 1) * self.length


def shared_prefixes(prompts: Sequence[Sequence[int]], block_size: int = 1) -> list[SharedPrefix]:
    """Groups of at least two prompts. Those of no group save nothing by any prefix they share.

    Prefixes are whole blocks, and at least the last token of each prompt is left to compute.
    """
    trie = _trie(prompts, block_size)
    return _groups(trie, _thresholds(trie))


def sharing(seqs: Sequence[Seq], block_size: int) -> Iterator[tuple[int, list[Seq]]]:
    """Prompt tokens that sequences of one model share, and which these are; see `shared_prefixes`."""
    for model in dict.fromkeys(seq.request.model for seq in seqs):
        some = [seq for seq in seqs if seq.request.model == model]
        for length, members in shared_prefixes([seq.tokens for seq in some], block_size):
            yield length, [some[i] for i in members]


class _Trie(NamedTuple):
    """Nodes are where prompts part or end. length: tokens from the root. own: prompts that end there."""

    length: list[int]
    children: list[list[int]]
    own: list[list[int]]


def _trie(prompts: Sequence[Sequence[int]], block_size: int) -> _Trie:
    """Built from the sorted prompts: neighbours share what any two around them do."""
    whole = [(len(prompt) - 1) // block_size * block_size for prompt in prompts]
    # Big-endian numbers, whose bytes sort as the tokens do.
    keys = [np.array(prompt[:n], ">u4") for prompt, n in zip(prompts, whole, strict=True)]
    length, parent = [0], [-1]
    own: list[list[int]] = [[]]
    branch, before = [ROOT], np.empty(0, ">u4")
    for i in sorted(range(len(keys)), key=[key.tobytes() for key in keys].__getitem__):
        shared = _common(before, keys[i]) // block_size * block_size
        below = None
        while length[branch[-1]] > shared:
            below = branch.pop()
        if length[branch[-1]] < shared:
            branch.append(_add(length, parent, own, shared, branch[-1]))
            if below is not None:
                parent[below] = branch[-1]
        if len(keys[i]) > shared:
            branch.append(_add(length, parent, own, len(keys[i]), branch[-1]))
        own[branch[-1]].append(i)
        before = keys[i]
    children: list[list[int]] = [[] for _ in length]
    for node in range(1, len(length)):
        children[parent[node]].append(node)
    return _Trie(length, children, own)


def _add(length: list[int], parent: list[int], own: list[list[int]], tokens: int, above: int) -> int:
    length.append(tokens)
    parent.append(above)
    own.append([])
    return len(length) - 1


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Leading tokens that two prompts share."""
    most = min(len(a), len(b))
    differs = a[:most] != b[:most]
    first = int(differs.argmax()) if most else 0
    return first if most and differs[first] else most


def _thresholds(trie: _Trie) -> list[int]:
    """Of each node: it opens a group if the nearest open node above it is less deep than this.

    With Q the length of the nearest open prefix above node v and P its own, its subtree saves so many tokens:

        h(v, Q) = max(own Q + sum h(c, Q), (own - 1) P + sum h(c, P))

    over its children c: either its prompts make do with Q, or they share P and one of them computes it. The
    first grows with Q, the second does not depend on it, hence a threshold.
    """
    opens = [0] * len(trie.length)
    path = np.zeros(len(trie.length))
    sums: list[np.ndarray] = []
    for node, depth, leaving in _walk(trie):
        if not leaving:
            path[depth] = trie.length[node]
            sums.append(np.zeros(depth + 1))
            continue
        below = sums.pop()
        if node == ROOT:
            break
        stay = len(trie.own[node]) * path[:depth] + below[:depth]
        opened = (len(trie.own[node]) - 1) * trie.length[node] + below[depth]
        opens[node] = int((stay < opened).sum())
        sums[-1] += np.maximum(stay, opened)
    return opens


def _walk(trie: _Trie) -> Iterator[tuple[int, int, bool]]:
    """Nodes with their depth, in order of depth first, as they are entered and as they are left."""
    stack = [(ROOT, 0, False)]
    while stack:
        node, depth, leaving = stack.pop()
        yield node, depth, leaving
        if not leaving:
            stack.append((node, depth, True))
            stack += [(child, depth + 1, False) for child in trie.children[node]]


def _groups(trie: _Trie, opens: Sequence[int]) -> list[SharedPrefix]:
    found: list[SharedPrefix] = []
    nearest: list[tuple[int, SharedPrefix | None]] = []
    for node, depth, leaving in _walk(trie):
        if leaving:
            nearest.pop()
            continue
        above, group = nearest[-1] if nearest else (0, None)
        if above < opens[node]:
            above, group = depth, SharedPrefix(trie.length[node], [])
            found.append(group)
        nearest.append((above, group))
        if group is not None:
            group.members.extend(trie.own[node])
    return found
