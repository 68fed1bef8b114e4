"""Window: k units of the model are in memory, and k_move of them are exchanged at a time.

Paper:  "Superpipeline: A Universal Approach for Reducing GPU Memory Usage in Large Models", 2024
Idea:   when k_move units have run they make room for as many that come next, which are copied while the
        others compute; behind the last unit come the first ones of the next pass
Shapes: units in order of use -> at every k_move-th, those of the next k that are not there
Cost:   at most num_units - stay copies a pass, none if k is all of them; memory for k of the largest.
        In the order of training (forward, then backward) num_units - k each way
Claims: superpipeline
Differs: k and k_move as they are remembered, the publication's source is not to be had. What makes room is
        what is needed again last. stay is ours: in passes that follow one another each unit that moves is
        copied every time, so units that never move save a copy each; with k - stay >= 2 copies still overlap
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.memory.residencies import Ring
from lightwork.memory.residencies._cycle import Cycle, cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """k: units in memory. k_move: exchanged together. stay: of the k, those that never leave, spread evenly
    over the model."""

    k: int = 4
    k_move: int = 1
    stay: int = 0

    def __post_init__(self) -> None:
        moving = self.k - self.stay
        if self.k < 1 or not 0 <= self.stay < self.k or not 1 <= self.k_move <= moving:
            raise RangeError(
                f"{self!r} exchanges {self.k_move} of {moving} units",
                expected="k >= 1, 0 <= stay < k and 1 <= k_move <= k - stay",
                fix="Window(k=4, k_move=1)",
            )

    @property
    def ring(self) -> Ring:
        return Ring(slots=self.k, layers=True)

    def init(self, order: Sequence[str]) -> Cycle:
        return cycle(order, self)

    def use(self, state: Cycle, name: str) -> tuple[str, ...]:
        """What is to be fetched: something when k_move units have run since the last time."""
        staying = self.staying(state.order)
        begins = state.at < 0
        state.ran += not begins and state.order[state.at] not in staying
        state.move_to(name)
        if state.ran < self.k_move and not begins:
            return ()
        state.ran = 0
        return tuple(one for one in state.coming(self.k - self.stay, staying) if one != name)

    def victim(self, state: Cycle, among: Collection[str]) -> str:
        staying = self.staying(state.order)
        return max(among, key=lambda name: (name not in staying, state.distance(name)))

    def staying(self, order: Sequence[str]) -> frozenset[str]:
        """The units that never leave."""
        names = [*dict.fromkeys(order)]
        return frozenset(names[len(names) * (i + 1) // self.stay - 1] for i in range(self.stay))
