"""Conversations of several turns, each of which goes on from all that was said before.

Paper:  - (multi-turn chat; "FastSwitch", 2024, takes conversations of ShareGPT with 5.5 turns on average)
Idea:   conversations begin as a Poisson process; after an answer its reader thinks, then asks again
Shapes: rng -> one arrival per turn, first turns first
Cost:   O(turns)
Claims: -
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.lengths import Length
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """rate: conversations that begin per second. turns: the mean; their number is geometric.

    think_s: mean time before a turn after the first, exponential. lengths: of one turn, its own tokens.
    max_len: a conversation ends before a turn that would make it longer.
    """

    rate: float = 1.0
    num_conversations: int = 64
    turns: float = 5.5
    think_s: float = 10.0
    lengths: Length = field(default_factory=Lognormal)
    max_len: int = 1 << 20

    def __post_init__(self) -> None:
        if min(self.rate, self.num_conversations) <= 0 or self.turns < 1 or self.think_s < 0:
            raise RangeError(
                f"{self!r} cannot be offered",
                expected="positive rate and num_conversations, turns >= 1, think_s >= 0",
                fix="Conversations(turns=5.5)",
            )

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        at_s = np.cumsum(rng.exponential(1.0 / self.rate, self.num_conversations))
        counts = rng.geometric(1.0 / self.turns, self.num_conversations)
        drawn = iter(self.lengths.draw(rng, int(counts.sum())))
        thoughts = iter(rng.exponential(self.think_s, int(counts.sum())))
        first: list[Arrival] = []
        later: list[Arrival] = []
        for number, (start_s, turns) in enumerate(zip(at_s, counts, strict=True)):
            said, last = 0, number
            for turn in range(turns):
                prompt, output = next(drawn)
                think_s = float(next(thoughts))
                said += prompt + output
                if turn == 0:
                    first.append(Arrival(float(start_s), prompt, output))
                elif said <= self.max_len:
                    later.append(Arrival(think_s, prompt, output, after=last, continues=True))
                    last = self.num_conversations + len(later) - 1
        return first + later
