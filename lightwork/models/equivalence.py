"""Which blocks may stand in for each other, found by asking both models (BlockLLM).

Two blocks of one place are compared by swapping them: probe texts go through each application with the block
of the other, and the probabilities over the vocabulary are held against those of the application itself.
Weights are never compared: a small change in one place may change everything, a large one elsewhere little.

T positions  V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightwork.kernels.rows import Rows
from lightwork.models.chains import share
from lightwork.models.model import Model
from lightwork.models.zoo import Edge, Zoo

Probe = NDArray[np.int64]
THRESHOLD = 0.98
BLOCK_SIZE = 16


class Probes:
    """Texts like those that will be served, as tokens. model: computes them; its own weights are replaced."""

    def __init__(self, model: Model, zoo: Zoo, texts: Sequence[Probe]) -> None:
        self.zoo = zoo
        self.model = model
        self.texts = texts

    def relate(self, threshold: float = THRESHOLD) -> list[Edge]:
        """Compare the blocks of every place and keep edges between those above the threshold, in both
        models."""
        zoo = self.zoo
        own = {name: self.probabilities(zoo.chain(name)) for name in zoo.applications}
        zoo.edges = []
        for (a, of_a), (b, of_b) in self._pairs():
            both = [
                _compared(own[name], self.probabilities(swapped(zoo.chain(name), old, new)))
                for name, old, new in ((of_a, a, b), (of_b, b, a))
            ]
            edge = Edge(a, b, *(min(part) for part in zip(*both, strict=True)))
            if edge.similarity >= threshold:
                zoo.edges.append(edge)
        zoo.save()
        return zoo.edges

    def likeness(self, chain: Sequence[str], other: Sequence[str]) -> tuple[float, float]:
        """Mean cosine of two chains' probabilities, and the share of positions with the same greedy token."""
        return _compared(self.probabilities(chain), self.probabilities(other))

    def probabilities(self, chain: Sequence[str]) -> Tensor:
        """Over the vocabulary, after every token of every text: [T, V]."""
        share(self.model, self.zoo, {"": chain})
        found = []
        for tokens in self.texts:
            pool = self.model.new_kv(-(-len(tokens) // BLOCK_SIZE), BLOCK_SIZE)
            found.append(self.model.forward(Rows.of_text(tokens, BLOCK_SIZE), pool))
        return torch.softmax(torch.cat(found).double(), -1)

    def _pairs(self) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
        """Different blocks of one place, each with an application that has it. Adapters belong to their
        base."""
        places: dict[tuple[str, int, str], dict[str, str]] = {}
        for name in self.zoo.applications:
            for i in self.zoo.chain(name):
                block = self.zoo.blocks[i]
                if block.kind not in ("adapter", "stitch"):
                    places.setdefault((*block.place, block.shape), {}).setdefault(i, name)
        for blocks in places.values():
            yield from combinations(blocks.items(), 2)


def swapped(chain: Sequence[str], old: str, new: str) -> list[str]:
    """A chain with another block in a block's place."""
    return [new if block == old else block for block in chain]


def assemble(zoo: Zoo, name: str, budget: float) -> list[str]:
    """An application's chain with blocks replaced by equivalent ones that more applications use.

    budget: of lost similarity, summed over the replaced blocks; the cheapest replacements come first.
    """
    users = {i: sum(i in zoo.chain(other) for other in zoo.applications) for i in zoo.blocks}
    chain = [*zoo.chain(name)]
    offers = []
    for edge in zoo.edges:
        for old, new in ((edge.a, edge.b), (edge.b, edge.a)):
            if old in chain and users[new] > users[old]:
                offers.append((1.0 - edge.similarity, chain.index(old), new))
    for cost, at, new in sorted(offers):
        if chain[at] in zoo.chain(name) and cost <= budget:
            chain[at] = new
            budget -= cost
    return chain


def _compared(mine_TV: Tensor, theirs_TV: Tensor) -> tuple[float, float]:
    same = (mine_TV.argmax(-1) == theirs_TV.argmax(-1)).double().mean()
    return float(F.cosine_similarity(mine_TV, theirs_TV, dim=-1).mean()), float(same)
