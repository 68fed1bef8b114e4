"""Steps by hand for any served model, and the forward they are compared with.

Sequences have their blocks scattered over the pool; attention of the forward follows its definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightwork.kernels.cpu.formats import F32, MatrixFormat
from lightwork.kernels.rows import Rows
from lightwork.models.model import Model
from lightwork.models.precisions import Grouping, Numbers
from lightwork.models.transformer import forward, logits

PAGE = 64
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """Of one sequence: `count` known tokens from `start`, then draft nodes with these parents (-1: the last
    known token)."""

    seq: int
    start: int
    count: int
    parents: tuple[int, ...] = ()

    @property
    def known(self) -> int:
        return self.start + self.count

    @property
    def num_rows(self) -> int:
        return self.count + len(self.parents)

    def depths(self) -> list[int]:
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 + depths[parent] if parent >= 0 else 0)
        return depths

    def masks(self) -> list[int]:
        """Each node's ancestors and itself, as bits."""
        masks: list[int] = []
        for node, parent in enumerate(self.parents):
            masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
        return masks

    def tokens(self) -> NDArray[np.int64]:
        text = np.random.default_rng(self.seq).integers(0, 256, 2048)[: self.known]
        nodes = np.random.default_rng(1000 + self.seq).integers(0, 256, len(self.parents))
        return np.concatenate([text[self.start :], nodes])


@dataclass(slots=True)
class Steps:
    """A model, its pool, and the blocks that each sequence holds."""

    model: Any
    num_blocks: int = 160
    pool: Any = None
    free: list[int] = field(default_factory=list)
    held: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = self.model.new_kv(self.num_blocks, PAGE)
        self.free = np.random.default_rng(0).permutation(self.num_blocks).tolist()

    def rows(self, parts: Sequence[Part]) -> Rows:
        """The rows of a step, all of them scored."""
        for part in parts:
            blocks = self.held.setdefault(part.seq, [])
            while len(blocks) * PAGE < part.start + part.num_rows:
                blocks.append(self.free.pop())
        width = max(len(self.held[part.seq]) for part in parts)
        tables = np.full((len(parts), width), -1, np.int32)
        for s, part in enumerate(parts):
            tables[s, : len(self.held[part.seq])] = self.held[part.seq]
        index = np.concatenate([np.arange(p.start, p.start + p.num_rows) for p in parts])
        seqs = np.repeat(np.arange(len(parts), dtype=np.int32), [p.num_rows for p in parts])
        positions = [[*range(p.start, p.known), *(p.known + d for d in p.depths())] for p in parts]
        ancestors = [[0] * p.count + p.masks() for p in parts]
        return Rows(
            tokens=np.concatenate([p.tokens() for p in parts]),
            positions=np.concatenate(positions).astype(np.int64),
            slots=tables[seqs, index // PAGE].astype(np.int64) * PAGE + index % PAGE,
            seqs=seqs,
            index=index,
            ancestors=np.concatenate([np.array(a, np.uint64) for a in ancestors]),
            known=np.array([p.known for p in parts]),
            tables=tables,
            scored=np.arange(len(index)),
        )

    def fork(self, seq: int, source: int, num_blocks: int) -> None:
        """Let a sequence begin with the blocks of another."""
        self.held[seq] = self.held[source][:num_blocks]

    def run(self, parts: Sequence[Part]) -> list[Logits]:
        """Logits of all rows of each part."""
        got = np.array(self.model.logits(self.rows(parts), self.pool))
        return np.split(got, np.cumsum([p.num_rows for p in parts])[:-1])

    def begin(self, parts: Sequence[Part]) -> None:
        """Compute what lies before the parts."""
        before = [Part(p.seq, 0, p.start) for p in parts if p.start]
        if before:
            self.run(before)

    def after(self, parts: Sequence[Part]) -> list[Logits]:
        """The parts in one step, after all that lies before them."""
        self.begin(parts)
        return self.run(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAs:
    """A precision for tests: any format of matrices, of keys and of values."""

    matrices: MatrixFormat = field(default_factory=MatrixFormat)
    kv: int = F32

    def numbers(self, stored: str, grouping: Grouping | None = None) -> Numbers:
        return Numbers(self.matrices, self.kv, "for a test")


Keep = Callable[[torch.Tensor], torch.Tensor]
"""What the pool keeps of keys or values [R, G, D]."""


def by_definition(model: Model, part: Part, keep: Keep = lambda x: x) -> Logits:
    """Logits of the part's rows, from the whole sequence at once; attention over a mask, in float64."""
    whole = Part(part.seq, 0, part.known, part.parents)
    known, num = whole.known, whole.num_rows
    positions = np.array([*range(known), *(known + d for d in whole.depths())])
    sees = np.tril(np.ones((num, num), bool))
    for node, mask in enumerate(whole.masks()):
        sees[known + node, known:] = [mask >> other & 1 for other in range(num - known)]

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        window = model.spec.window(layer)
        near = positions[:, None] - positions < window if window else True
        hidden = torch.from_numpy(~(sees & near))
        share = q.shape[1] // k.shape[1]
        keys, values = (keep(x).double().repeat_interleave(share, 1) for x in (k, v))
        scores = torch.einsum("rhd,thd->hrt", q.double(), keys) / q.shape[2] ** 0.5
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hrt,thd->rhd", weights, values).float()

    with torch.inference_mode():
        states = forward(
            model.weights, model.spec, torch.from_numpy(whole.tokens()), torch.from_numpy(positions), attend
        )
        return logits(model.weights, states[part.start :]).numpy()
