"""Experts that lie in host memory and are copied, when rows take them, into an arena that holds a few of each
layer. Torch forward; outputs are the same bits with any number of slots.

    experts = OffloadedExperts(model.weights, model.spec, slots=4)
    mixture = Mixture(weights=model.weights, spec=model.spec, bring=experts.bring)
    model.hidden = through(model, mixture)

Rows of a step may take more experts of a layer than there are slots. Then they come in turns: those that are
there first, the others into the places of those that are done.

F MLP width  d hidden  R rows
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from lightwork.memory.expert_cache import ExpertCache, PolicyOf
from lightwork.memory.residencies.lru import LRU
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights


class OffloadedExperts:
    """Whose `bring` a `Mixture` is given. slots: experts of each layer in the arena. cache: what it counted.

    Raises CapacityError for fewer slots than a token takes experts.
    """

    def __init__(
        self, weights: Weights, spec: ModelSpec, slots: int, policy_of: PolicyOf = lambda layer: LRU()
    ) -> None:
        self._at = {i: at for at, i in enumerate(sorted(spec.moe))}
        self._host = {i: (weights.layers[i].up, weights.layers[i].down) for i in self._at}
        up, down = next(iter(self._host.values()))
        self.cache = ExpertCache(
            num_layers=len(self._at),
            num_experts=spec.num_experts,
            experts_per_token=spec.experts_per_token,
            slots=slots,
            expert_bytes=up[0].nbytes + down[0].nbytes,
            policy_of=policy_of,
        )
        self._arena = [
            tuple(matrix.new_empty((self.cache.slots, *matrix.shape[1:])) for matrix in (up, down))
            for _ in self._at
        ]

    @property
    def arena_bytes(self) -> int:
        """All the room that experts have."""
        return sum(matrix.nbytes for slots in self._arena for matrix in slots)

    def bring(self, layer: int, needed: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """See `mixture.Bring`."""
        at = self._at[layer]
        here = [e for e in needed if self.cache.holds(at, e)]
        order = here + [e for e in needed if e not in here]
        for first in range(0, len(order), self.cache.slots):
            turn = order[first : first + self.cache.slots]
            for expert, slot in self.cache.use(at, turn):
                for to, source in zip(self._arena[at], self._host[layer], strict=True):
                    to[slot].copy_(source[expert])
            for e in turn:
                up, down = (matrix[self.cache.slot(at, e)] for matrix in self._arena[at])
                yield e, up, down
