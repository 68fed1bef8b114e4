"""What passes through blocks and hops between devices take, by the cluster's prices."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from lightwork.cluster import CostModel
from lightwork.serve.catalogue import Block, Catalogue

USUAL_CONTEXT = 512
SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384)
"""Rows at which a block's profile is taken; between two of them it is a line."""


class BlockPrices:
    """Of one catalogue on one cluster. A pass costs the host its share of the time that a step of all
    layers does."""

    def __init__(self, costs: CostModel, catalogue: Catalogue) -> None:
        self.costs = costs
        self.catalogue = catalogue
        self._profiles = [
            [self._pass_s(block, [(USUAL_CONTEXT, 1)] * rows, rows, ()) for rows in SIZES]
            for block in catalogue.blocks
        ]

    def seconds(self, block: int, rows: float) -> float:
        """Of a pass of so many rows, as the block's profile has it."""
        i = min(max(1, bisect_left(SIZES, rows)), len(SIZES) - 1)
        x0, x1, y0, y1 = SIZES[i - 1], SIZES[i], self._profiles[block][i - 1], self._profiles[block][i]
        return y0 + (y1 - y0) * (rows - x0) / (x1 - x0)

    def pass_s(
        self, block: int, chunks: Sequence[tuple[int, int]], scored: int, adapters: Sequence[int]
    ) -> float:
        """Of chunks (start, rows). scored: whose token is chosen. adapters: their ranks."""
        return self._pass_s(self.catalogue.blocks[block], chunks, scored, adapters)

    def again_s(self, block: int, rows: int, start: int, count: int) -> float:
        """By how much computing `start` rows of context again lengthens a pass of `count`, and of rows of
        others."""
        others = [(USUAL_CONTEXT, 1)] * rows
        alone, again = ([*others, chunk] for chunk in ((start, count), (0, start + count)))
        return self.pass_s(block, again, 0, ()) - self.pass_s(block, alone, 0, ())

    def link_s(self, src: int, dst: int, nbytes: float) -> float:
        """From one rank to another, with the link to itself."""
        if src == dst:
            return 0.0
        link = self.costs.cluster.link(src, dst)
        return link.latency_s + nbytes / link.bytes_per_s

    def load_s(self, block: int) -> float:
        """To fetch a block from host memory."""
        host = self.costs.cluster.device.memory("host")
        return host.latency_s + self.catalogue.blocks[block].nbytes / host.read_bytes_per_s

    def _pass_s(
        self, block: Block, chunks: Sequence[tuple[int, int]], scored: int, adapters: Sequence[int]
    ) -> float:
        step_s = self.costs.cluster.device.step_s * block.spec.num_layers / block.whole
        return self.costs.seconds(block.work(chunks, scored, adapters)) + step_s
