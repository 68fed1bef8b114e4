"""A slice of a model that computes: what a pipeline stage's rank runs.

R rows  N scored rows  d hidden  V vocabulary
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.kernels.rows import Rows
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.model import DTYPES, KVPool, paged
from lightwork.models.parts import each_part
from lightwork.models.slices import Slice, weights_of
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.transformer import Reduce, logits, normalise, run_layers
from lightwork.models.weights import Weights
from lightwork.runtime.progress import Progress


class Stage:
    """whole: the model's shape. spec: the slice's own. reduce: sums over the ranks that share its layers."""

    def __init__(
        self, whole: ModelSpec, mine: Slice, weights: Weights, device: str, reduce: Reduce = lambda part: part
    ) -> None:
        assert not mine.master, "a master's helpers have no part of the embedding to sum"
        self.whole = whole
        self.mine = mine
        self.spec = mine.shape(whole)
        self.weights = weights
        self.device = device
        self.reduce = reduce
        self.begins = mine.first == 0
        self.ends = mine.last == whole.num_layers

    @property
    def nbytes(self) -> int:
        """Of its weights."""
        return self.weights.nbytes

    @property
    def resident_bytes(self) -> int:
        """Of the weights that are in memory at once: all."""
        return self.weights.nbytes

    def new_kv(self, num_blocks: int, block_size: int) -> KVPool:
        return KVPool(self.spec, num_blocks, block_size, self.weights.embed.dtype, self.device)

    def warm_up(self) -> None:
        """One forward of a few rows, on all ranks of the stage together."""
        x_Rd = torch.zeros(4, self.spec.hidden_size, dtype=self.weights.embed.dtype, device=self.device)
        self.forward(Rows.of_text(np.zeros(4, np.int64), 4), self.new_kv(1, 4), x_Rd)

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVPool, x_Rd: Tensor | None = None) -> Tensor:
        """Hidden states [R, d] behind these layers; from the last stage logits, float32, of the scored rows
        for the slice's vocabulary [N, V / ranks].

        x_Rd: what the stage before gave; not needed by the first.
        """
        hidden = self.states(rows, kv, x_Rd)
        return logits(self.weights, hidden) if self.ends else hidden

    @torch.inference_mode()
    def states(self, rows: Rows, kv: KVPool, x_Rd: Tensor | None = None) -> Tensor:
        """As `forward`; from each rank of the last stage the hidden states of the scored rows behind the last
        norm, [N, d]."""
        positions_R = torch.from_numpy(rows.positions).to(self.device)
        if self.begins:
            x_Rd = self._embed(torch.from_numpy(rows.tokens).to(self.device), positions_R)
        assert x_Rd is not None
        attend = paged(self.spec, rows, kv, self.device)
        x_Rd = run_layers(self.weights.layers, self.spec, x_Rd, positions_R, attend, self.reduce)
        if not self.ends:
            return x_Rd
        scored_N = torch.from_numpy(rows.scored).to(self.device)
        return normalise(self.weights, self.spec, x_Rd[scored_N])

    def _embed(self, tokens_R: Tensor, positions_R: Tensor) -> Tensor:
        own = self.mine.vocabulary(self.whole)
        here_R = (tokens_R >= own.start) & (tokens_R < own.stop)
        x_Rd = F.embedding((tokens_R - own.start) * here_R, self.weights.embed) * here_R[:, None]
        if self.weights.positions is not None:
            x_Rd = x_Rd + F.embedding(positions_R, self.weights.positions)
        return self.reduce(x_Rd)


def open_stage(
    path: Path,
    mine: Slice,
    *,
    dtype: str,
    device: str,
    reduce: Reduce = lambda part: part,
    progress: Progress | None = None,
) -> Stage:
    """Load one slice of a model. Raises CheckpointError, SpecError for a slice that it has not."""
    spec = read_spec(path)
    mine.shape(spec)
    checkpoint = open_checkpoint(path, progress)
    for part in each_part(spec):
        if not mine.holds(spec, part):
            for name, _ in part.tensors:
                checkpoint.skip(name)
    weights = weights_of(spec, mine, checkpoint.get, DTYPES[dtype], device)
    checkpoint.check_all_read()
    if progress is not None:
        progress("read", checkpoint.total_bytes, checkpoint.total_bytes)
    return Stage(spec, mine, weights, device, reduce)
