"""BlockLLM: requests hop between instances of shared blocks, keys and values by the cheapest of three ways.

Paper:  "BlockLLM: Multi-tenant Finer-grained Serving for Large Language Models", 2024
Idea:   keys and values stay with the instance that computed them, and a request comes back to it; where it
        would wait long, it goes where copying or recomputing them is sooner, instances of equivalent blocks
        included, within a budget of similarity. A block's batch grows while a larger one is cheaper than a
        second pass. Blocks that follow one another live on one device, the busiest get more instances
Shapes: candidates -> one of them and a way; demands of blocks -> instances to add or to evict
Cost:   O(candidates) per hop, O(blocks x devices) per change
Claims: blockllm
Differs: a request that begins goes to one device that has its whole chain, where it costs itself and those
        who are there least. Hops are not speculated on; for real, `models.speculation` does
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.serve.hops import Candidate, Carry, Change, Choice, Demand, Instance, Stored
from lightwork.serve.hops._greedy import begin, scale_out

MOST_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLLM:
    """patience: passes of its block that a request waits at its owner before it looks elsewhere: who leaves
    waits for two devices' turns with every later token. kv_share: of memory, for keys and values.

    gain: a batch is doubled while that costs less than this share of a second pass. scale: a block gets
    another instance when its queue is so many times the mean of all.
    """

    patience: float = 32.0
    kv_share: float = 0.3
    gain: float = 0.9
    scale: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.kv_share < 1.0 or not 0.0 < self.gain <= 1.0 or min(self.patience, self.scale) < 0:
            raise RangeError(f"{self!r} cannot place", expected="shares of 0 to 1", fix="BlockLLM()")

    def choose(self, candidates: Iterable[Candidate], budget: float) -> Choice:
        """The owner unless it keeps one waiting long; else the way that costs least time, its own and that of
        those it joins."""
        best: tuple[float, bool, int, Carry] | None = None
        for i, candidate in enumerate(candidates):
            if candidate.owner and candidate.wait_s <= self.patience * candidate.pass_s:
                return Choice(i, "owner")
            if candidate.loss and candidate.loss > budget:
                continue
            for carry, begins_s in begins(candidate).items():
                way = (begins_s + candidate.adds_s, not candidate.owner, i, carry)
                best = way if best is None or way < best else best
        assert best is not None, "a request's own block has an instance"
        return Choice(best[2], best[3])

    def batch(self, seconds: Callable[[int], float]) -> int:
        rows = 1
        while rows < MOST_ROWS and seconds(2 * rows) - seconds(rows) < self.gain * seconds(rows):
            rows *= 2
        return rows

    def place(
        self,
        demands: Sequence[Demand],
        blocks: Sequence[Stored],
        rooms: Sequence[float],
        instances: Sequence[Instance],
    ) -> list[Change]:
        if not instances:
            return begin(demands, blocks, rooms, self.kv_share)
        return scale_out(demands, blocks, rooms, instances, self.kv_share, self.scale)


def begins(candidate: Candidate) -> dict[Carry, float]:
    """When the block's pass would begin, by each way of having keys and values there: copies run while others
    are served, what is computed again is so at the instance itself."""
    there_s = max(candidate.wait_s, candidate.reach_s)
    if candidate.owner:
        return {"owner": there_s}
    return {
        "transfer": max(candidate.wait_s, candidate.reach_s + candidate.transfer_s),
        "recompute": there_s + candidate.recompute_s,
    }
