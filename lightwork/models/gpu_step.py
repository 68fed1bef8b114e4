"""A dense Llama-like model's forward on the Triton kernels, with small steps captured as CUDA graphs.

Between matrix products stands one kernel each (`kernels.gpu`). On a GPU, a step of few rows is captured once
for each power of two of rows and replayed from then on, since launching its kernels one by one would take
longer than running them. On a CPU, with Triton's interpreter, every step is computed directly.

Attention gives a row the same bits in any batch. The matrix products are the vendor's, which sum in another
order for another number of rows, so logits may differ in their last bits with who shares the step. Steps
with adapters are computed by `Model.forward`.

R rows  N scored rows  d hidden  H query heads  D head size  V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.errors import CheckpointError
from lightwork.kernels.gpu.attention import DevicePlan, lean_attention, place_plan
from lightwork.kernels.gpu.fused import gated, rms_norm, rotate_and_store
from lightwork.kernels.gpu.mirror import Mirror
from lightwork.kernels.gpu.tasks import TILES, check_blocks, plan_tasks
from lightwork.kernels.rows import Rows
from lightwork.models.model import KVPool, Model
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import embed, logits, rotary

MAX_GRAPH_ROWS = 64
"""Steps of at most so many rows are captured."""

Feed = tuple[Tensor, Tensor]
"""Rows, and the tokens that stand there: both on the device, which knows them before the host does."""

INTERPRETED_UNITS = 2
"""Multiprocessors that the interpreter pretends to have."""


def supports(spec: ModelSpec) -> bool:
    """Llama, Mistral, Qwen2 and Qwen3 shapes: no experts, RMSNorm, rotary positions, a gated SiLU."""
    plain = spec.norm == "rms" and spec.position == "rotary" and spec.activation == "silu" and spec.gated
    return plain and not spec.moe and spec.head_size % 2 == 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """A step's rows on the device, padding included. plans: by window."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    scored: Tensor
    plans: dict[int | None, DevicePlan]


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured step and the logits it writes. batch keeps the buffers it reads alive."""

    graph: torch.cuda.CUDAGraph
    batch: _Batch
    logits_NV: Tensor


class GpuStep:
    """`Model.forward` with the same arguments and result. One caller at a time, and one cache at a time.

    max_graph_rows: steps of at most so many rows are captured; 0 captures none.
    """

    def __init__(self, model: Model, *, max_graph_rows: int = MAX_GRAPH_ROWS) -> None:
        if not supports(model.spec):
            raise CheckpointError(
                f"{model.spec.family} has no GPU step",
                expected="a dense Llama-like model",
                fix="use Model.forward",
            )
        self.model = model
        self.spec = model.spec
        self.device = torch.device(model.device)
        self.max_graph_rows = max_graph_rows if self.device.type == "cuda" else 0
        self._mirror = Mirror(self.device)
        self._graphs: dict[tuple[int, tuple[int, ...]], _Graph] = {}
        self._captured_for: tuple[KVPool | None, Tensor | None, int] = (None, None, 0)
        self._units = INTERPRETED_UNITS
        self._memory: Any = None
        if self.device.type == "cuda":
            self._units = torch.cuda.get_device_properties(self.device).multi_processor_count

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def new_kv(self, num_blocks: int, block_size: int) -> KVPool:
        return self.model.new_kv(num_blocks, block_size)

    def warm_up(self, kv: KVPool) -> None:
        """Compile the kernels and capture graphs of decodes. Overwrites the cache's first slots."""
        share = self.spec.num_heads // self.spec.num_kv_heads
        num = self.max_graph_rows.bit_length()
        shapes = [(1 << i, 1) for i in reversed(range(num))] + [(1, tile.rows(share)) for tile in TILES]
        for num_seqs, count in shapes:
            if count <= len(kv.keys_LTGD[0]):
                self.forward(_first_rows(num_seqs, count, kv.block_size), kv)

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVPool, feed: Feed | None = None) -> Tensor:
        """Write the rows' keys and values and return the logits of the scored ones, float32 [N, V].

        feed: where other tokens stand than `rows` says, not with adapters. On a GPU the next forward may
        overwrite the logits. Raises InvariantError, before anything runs, if a row would read or write
        outside the pool.
        """
        check_blocks(rows, kv.keys_LTGD.shape[1] // kv.block_size, kv.block_size)
        if rows.models:
            return self.model.forward(rows, kv)
        if self.device.type == "cpu":
            return self._run(self._place(rows, len(rows.tokens), len(rows.scored), feed), kv)
        with torch.cuda.device(self.device):
            if len(rows.tokens) > self.max_graph_rows:
                return self._run(self._place(rows, len(rows.tokens), len(rows.scored), feed), kv)
            return self._replay(rows, kv, feed)

    def _replay(self, rows: Rows, kv: KVPool, feed: Feed | None) -> Tensor:
        """The step by the graph of its number of rows and tile shapes, captured now if there is none."""
        padded = 1 << (len(rows.tokens) - 1).bit_length()
        batch = self._place(rows, padded, padded, feed)
        (known_kv, known_probes, version), probes = self._captured_for, self.model.weights.probes
        if known_kv is not kv or known_probes is not probes or version != self._mirror.version:
            # A memory pool whose graphs are all gone cannot be captured into again.
            self._memory = torch.cuda.graph_pool_handle()
            self._graphs.clear()
            self._captured_for = (kv, probes, self._mirror.version)
        key = (padded, tuple(tile.lanes for plan in batch.plans.values() for tile, _, _ in plan.parts))
        found = self._graphs.get(key)
        if found is None:
            found = self._graphs[key] = self._capture(batch, kv)
        found.graph.replay()
        return found.logits_NV[: len(rows.scored)]

    def _capture(self, batch: _Batch, kv: KVPool) -> _Graph:
        """Run once, so that every kernel is compiled, then capture. Both write what the replay will write."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run(batch, kv)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            logits_NV = self._run(batch, kv)
        return _Graph(graph, batch, logits_NV)

    def _place(self, rows: Rows, num_rows: int, num_scored: int, feed: Feed | None = None) -> _Batch:
        """Copy the step to the device, padded with rows that are written nowhere and see nothing."""
        spec, mirror = self.spec, self._mirror
        padding = num_rows - len(rows.tokens)
        windows = sorted({spec.window(i) for i in range(spec.num_layers)}, key=lambda w: w or 0)
        mirror.begin()
        plans = {}
        for window in windows:
            plan = plan_tasks(rows, spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, window)
            plans[window] = place_plan(mirror, f"plan/{window}", plan, rows, spec.head_size, padding)
        scored = np.pad(rows.scored, (0, num_scored - len(rows.scored)))
        slots = np.pad(rows.slots.astype(np.int32), (0, padding), constant_values=-1)
        batch = _Batch(
            tokens=mirror.put("tokens", np.pad(rows.tokens, (0, padding)))[:num_rows],
            positions=plans[windows[0]].positions[:num_rows],
            slots=mirror.put("slots", slots),
            scored=mirror.put("scored", scored)[:num_scored],
            plans=plans,
        )
        mirror.end()
        if feed is not None:
            batch.tokens[feed[0]] = feed[1].to(batch.tokens.dtype)
        return batch

    def _run(self, batch: _Batch, kv: KVPool) -> Tensor:
        spec, weights = self.spec, self.model.weights
        heads, size, eps = spec.num_heads, spec.head_size, spec.norm_eps
        x_Rd = embed(weights, batch.tokens, batch.positions)
        cos, sin = rotary(spec.rope, size, batch.positions, x_Rd.dtype)
        norms = [layer.norm1 for layer in weights.layers[1:]] + [weights.norm]
        h_Rd = rms_norm(x_Rd, weights.layers[0].norm1, eps)
        for i, layer in enumerate(weights.layers):
            keys_TGD, values_TGD = kv.keys_LTGD[i], kv.values_LTGD[i]
            qkv = F.linear(h_Rd, layer.qkv, layer.qkv_bias)
            rotate_and_store(
                qkv,
                cos,
                sin,
                batch.slots,
                keys_TGD,
                values_TGD,
                q_norm_D=layer.q_norm,
                k_norm_D=layer.k_norm,
                eps=eps,
            )
            out_RHD = lean_attention(
                qkv[:, : heads * size].view(-1, heads, size),
                keys_TGD,
                values_TGD,
                batch.plans[spec.window(i)],
                block_size=kv.block_size,
                window=spec.window(i),
                units=self._units,
            )
            attended = F.linear(out_RHD.flatten(1), layer.out, layer.out_bias)
            h_Rd = rms_norm(x_Rd, layer.norm2, eps, add_Rd=attended)
            up = F.linear(h_Rd, layer.up, layer.up_bias)
            h_Rd = rms_norm(x_Rd, norms[i], eps, add_Rd=F.linear(gated(up), layer.down, layer.down_bias))
        return logits(weights, h_Rd[batch.scored])


def _first_rows(num_seqs: int, count: int, block_size: int) -> Rows:
    """The first `count` rows of sequences that all stand in the pool's first blocks."""
    index = np.tile(np.arange(count), num_seqs)
    return Rows(
        tokens=np.zeros_like(index),
        positions=index,
        slots=index,
        seqs=np.repeat(np.arange(num_seqs, dtype=np.int32), count),
        index=index,
        ancestors=np.zeros(len(index), np.uint64),
        known=np.full(num_seqs, count),
        tables=np.tile(np.arange(-(-count // block_size), dtype=np.int32), (num_seqs, 1)),
        scored=np.arange(count - 1, len(index), count),
    )
